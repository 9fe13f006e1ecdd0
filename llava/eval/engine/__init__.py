"""What the commands of `llava.eval` and its benchmarks are made of."""
