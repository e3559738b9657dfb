"""From files to rows of tokens: read, tokenise, pack, write once; then an order, and streams that follow it."""
