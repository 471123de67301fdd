"""What the benchmarks of training share: the other ways to train that they compare with."""
