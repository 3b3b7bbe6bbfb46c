"""Many runs or one question: whole protocols, baselines, ablations, and checks of a trained model."""
