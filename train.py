"""Train, validate, test and predict: `python train.py --help`."""

from anneal.entry import main

if __name__ == "__main__":
    main()
