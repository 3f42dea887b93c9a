"""The door of the measured process: `python -m attnbench.worker READ WRITE PARENT`, which another revision's gate opens.

What is behind it is `attnbench.measure.worker.serve`.
"""

from attnbench.measure.worker.serve import main

if __name__ == "__main__":
    main()
