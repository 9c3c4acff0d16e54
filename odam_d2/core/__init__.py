"""Pure tensor mathematics of the explanations. Imports torch and nothing else."""
