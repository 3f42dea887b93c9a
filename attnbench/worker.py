"""`python -m attnbench.worker READ WRITE PARENT`: the measured process, `attnbench.measure.worker.serve`.

Another revision's gate starts it by this name.
"""

from attnbench.measure.worker.serve import main

if __name__ == "__main__":
    main()
