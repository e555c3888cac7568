"""Train, validate, test and predict: `python train.py --help`."""

from anneal.cli import main

if __name__ == "__main__":
    main()
