"""Second-order finite differences, the baseline every numerical method is first held against."""
