"""The synthetic kitchen: a small dataset in real formats whose best possible scores are known."""
