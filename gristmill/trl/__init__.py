"""Training with TRL: SFT, DPO, KTO and reward models, with adapters or all weights, on one or several devices.

trainer     behind the trainer protocol: checks a recipe, starts the processes, halves the batch out of memory
launch      processes of one training: their start, their events, their end
process     what each of them does (`python -m gristmill.trl JOB.json`)
methods     which TRL trainer, with which configuration
rows        the training and validation files as a dataset, and how rows share a step among devices
template    where the loss goes in a chat template
checkpoints what a killed training resumes from
output      the finished folder
"""
