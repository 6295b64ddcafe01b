"""The response cache: a stored answer for a request that was asked before. Off unless asked for;
not the KV cache: nothing is computed and nothing is read for a request that it answers."""
