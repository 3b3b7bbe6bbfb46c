"""What one fold's training needs beside its loop, which is in train_accelerate.py."""
