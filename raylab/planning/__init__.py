"""What a grid will cost and how long it will take: FLOPs, memory, contract, plan, schedule."""
