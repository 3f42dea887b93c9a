"""Position lambdas as a convolution (LambdaNetworks)."""
