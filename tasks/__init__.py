"""The Prefect tasks: one module a step, thin around library calls."""
