"""What only a GPU can show. The same bodies run on the CPU where they can, so that they are not broken unseen."""
