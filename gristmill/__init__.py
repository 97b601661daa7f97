"""Gristmill: agent rollouts become better models, with proof. The library; it knows nothing of Prefect."""
