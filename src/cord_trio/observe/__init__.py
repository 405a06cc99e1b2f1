"""What an operator can see: the live tree, counts, log records."""

from cord_trio.observe.tree import Node as Node
