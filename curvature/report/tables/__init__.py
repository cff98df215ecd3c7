"""What is measured, as rows of plain numbers and as tables: one module for each kind of measurement."""
