"""The optimizer lab: networks of one or two numbers, whose training is drawn."""

# Each is a subcommand of train.py: the function that it calls, and a line of help.
COMMANDS: dict[str, tuple[str, str]] = {
    "figures": ("examples.optimizers.figures:main", "Draw finished runs of the optimizer lab"),
    "gallery": ("examples.optimizers.gallery:main", "Draw twelve optimizers on six surfaces"),
    "lab": ("examples.optimizers.lab:main", "Write a page to play with optimizers"),
    "course": ("examples.optimizers.course:main", "Mark your answers to docs/course.md"),
}
