"""Many trainings on this machine: W&B's sweep files by Optuna, comparisons, branches of one run.

file.py      what a sweep file asks for, and what of it is not supported
space.py     one parameter: from a W&B distribution to what Optuna draws
study.py     which trial is next, in a database that outlives a killed sweep
worker.py    runs the trials, some at a time
process.py   trainings as processes, forked from one that has done the imports; a list of them
result.py    the table and the figure
main.py      the command `sweep FILE`
compare.py   the command `compare A.yaml B.yaml`, paired.py its statistics
cooldown.py  the command `cooldown --run=NAME`
"""
