"""`make million`: as many devices as a machine can hold on one gateway, and what it promises them."""
