"""What every room uses: errors, files, digests, progress."""
