// The promises, in virtual time: many random histories against the real operator.
import { expect, test } from "bun:test"
import { join } from "node:path"
import { type Found, tell } from "./simulation.ts"

/** As many as leave the whole suite below two minutes on two cores; CI runs 10,000. */
const HISTORIES = Number(process.env.HISTORIES ?? 4_000)
/**
 * Fixed, so that a change is not blamed for a history that no run before it has met; `bun run simulate` looks further.
 */
const SEED = Number(process.env.SEED ?? 1)
/** One for each of two cores: on one of them they take as long as all other tests take on the other. */
const PROCESSES = 2

type Result = { found?: Found; tally: Record<string, number> }

async function searchInProcess(runs: number, seed: number): Promise<Result> {
  const { promise, resolve } = Promise.withResolvers<Result>()
  const command = [process.execPath, join(import.meta.dir, "worker.ts"), String(runs), String(seed)]
  const worker = Bun.spawn(command, { ipc: resolve, stdout: "inherit", stderr: "inherit" })
  const ended = worker.exited.then((code) => Promise.reject(new Error(`the worker ended with ${code}`)))
  return Promise.race([promise, ended])
}

test(`${HISTORIES} histories break no promise`, async () => {
  const seeds = Array.from({ length: PROCESSES }, (_, i) => SEED + i)
  const results = await Promise.all(seeds.map((seed) => searchInProcess(HISTORIES / PROCESSES, seed)))
  for (const { found } of results)
    if (found)
      throw new Error(
        `SEED=${found.seed}, path ${found.path}, history ${found.runs}: ${found.message}\n${tell(found.history)}`,
      )
  const sum = (what: string) => results.reduce((count, { tally }) => count + (tally[what] ?? 0), 0)
  console.log(
    `${HISTORIES} histories, seeds ${seeds.join(", ")}: ${sum("restarts")} restarts, ${sum("crash")} crashes, 0 lost`,
  )
  expect(sum("restarts")).toBeGreaterThan(HISTORIES)
}, 600_000)
