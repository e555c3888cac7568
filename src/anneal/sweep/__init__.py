"""Sweeps: a W&B sweep file run on this machine, by Optuna: `python -m anneal.sweep FILE [-j N]`.

file.py    what a sweep file asks for, and what of it is not supported
draw.py    one parameter: from a W&B distribution to what Optuna draws
queue.py   which trial is next, in a database that outlives a killed sweep
process.py one trial as a process, forked from one that has done the imports
result.py  the table and the picture
"""
