"""What others do, written from their documentation or from the published procedure; same dtype, threads and tokens."""
