"""The whole chain of a sweep: every law on its runs and on simulated replicates of them."""
