"""Imports what every command needs: for a process that trainings are forked from."""

from anneal.cli.entry import import_main

import_main()
