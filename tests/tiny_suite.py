"""A suite of two operators at two sizes, in two rounds, which takes a second."""

TINY = """
name: tiny
operators: [softmax, linformer]
impls: [reference]
sweep: [{seq_len: [16, 32]}]
problem: {heads: 2, channels: 16}
measure: {rounds: 2, crossover_precision: null, min_turns: 2, max_turns: 2}
limits: {memory: 1GiB}
"""
