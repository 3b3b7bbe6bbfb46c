"""Training, evaluation and publishing of MTMM models; never uploaded to the Hub."""
