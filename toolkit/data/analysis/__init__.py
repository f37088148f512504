"""What a data set is like: numbers, figures, a gallery to look through, and two data sets side by side."""
