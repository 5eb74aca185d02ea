// Searches in a process of its own, for simulation_test.ts: bun .dev/simulation/worker.ts RUNS SEED
import { search } from "./simulation.ts"

const [runs, seed] = process.argv.slice(2).map(Number)
const tally = new Map<string, number>()
const found = search(runs ?? 0, seed ?? 0, { tally })
process.send?.({ found, tally: Object.fromEntries(tally) })
