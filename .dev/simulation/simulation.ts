// Runs histories: one, many at random, and from the command line.
//
//   bun .dev/simulation/simulation.ts --histories 1000000 [--seed N] [--path P]
import { parseArgs } from "node:util"
import fc from "fast-check"
import { type Action, type History, histories, type Version } from "./histories.ts"
import { EXCEPTIONS } from "./invariants.ts"
import { currentProgram, type Program, releasedProgram } from "./programs.ts"
import { Simulation, Violation } from "./world.ts"

export { Violation }

const CURRENT = currentProgram()
/** Where the history of the repository is not there, the current version takes its place. */
const RELEASED = (await releasedProgram()) ?? CURRENT

interface Options {
  program?: Program
  tally?: Map<string, number>
  trace?: string[]
}
/** Runs one history; throws a Violation. */
export function simulate(history: History, { program = CURRENT, tally = new Map(), trace }: Options = {}): void {
  const programs: Record<Version, Program> = { current: program, "1.0.0": RELEASED }
  const simulation = new Simulation(programs, history, tally, trace)
  try {
    simulation.run()
  } finally {
    simulation.end()
  }
}

/** A history, step by step, as it ran. */
export function tell(history: History, program = CURRENT): string {
  const trace: string[] = []
  try {
    simulate(history, { program, trace })
  } catch (error) {
    if (!(error instanceof Violation)) throw error
  }
  return [JSON.stringify(history), ...trace].join("\n")
}

/** The first history that breaks a promise, made as short as it gets. */
export interface Found {
  seed: number
  path: string
  history: History
  message: string
  runs: number
}
interface SearchOptions extends Omit<Options, "trace"> {
  path?: string
  endOnFailure?: boolean
  actions?: Action["do"][]
}
/** Runs so many random histories. */
export function search(runs: number, seed: number, options: SearchOptions = {}): Found | undefined {
  const property = fc.property(histories(options.actions), (history) => simulate(history, options))
  const { path, endOnFailure = false } = options
  const details = fc.check(property, { numRuns: runs, seed, endOnFailure, ...(path && { path }) })
  if (!details.failed) return undefined
  const [history] = details.counterexample as [History]
  const error = details.errorInstance
  const message = error instanceof Error ? (error.stack ?? "") : String(error)
  return { seed, path: details.counterexamplePath ?? "", history, message, runs: details.numRuns }
}

const CHUNK = 5_000
function main(): number {
  const text = { type: "string" } as const
  const { values } = parseArgs({ options: { histories: text, seed: text, path: text } })
  const total = Number(values.histories ?? 10_000)
  const first = Number(values.seed ?? Date.now() % 1_000_000_000)
  const tally = new Map<string, number>()
  const startedAt = performance.now()
  for (let done = 0, seed = first; done < total; done += CHUNK, seed++) {
    const found = search(Math.min(CHUNK, total - done), seed, { tally, ...(values.path && { path: values.path }) })
    if (found) {
      const again = `--histories 1 --seed ${found.seed} --path ${found.path}`
      console.log(`${found.message}\n${tell(found.history)}\n\nafter ${done + found.runs} histories: ${again}`)
      return 1
    }
    const seconds = (performance.now() - startedAt) / 1_000
    const ran = Math.min(total, done + CHUNK)
    const rate = `${seconds.toFixed(0)} s, ${(ran / seconds).toFixed(0)}/s`
    const megabytes = (process.memoryUsage.rss() / 1e6).toFixed(0)
    console.log(`${ran} histories, ${rate}, seed ${seed}, ${megabytes} MB`)
  }
  for (const [what, count] of [...tally].sort()) console.log(`${String(count).padStart(10)} ${what}`)
  for (const [name, why] of Object.entries(EXCEPTIONS)) console.log(`exception ${name}: ${why}`)
  return 0
}

if (import.meta.main) process.exit(main())
