"""What odam_d2 costs, in time and memory, beside plain Detectron2 and plain autograd."""
