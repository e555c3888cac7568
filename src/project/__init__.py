"""The project: its networks (`models`) and its data (`data`). Everything here is yours to edit."""
