"""GPU kernels: a package per algorithm, library/ for what is a library's call; never imported by a reference."""
