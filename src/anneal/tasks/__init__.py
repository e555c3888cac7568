"""One label, several labels or numbers: what follows from the task of a model."""
