// The promises, in virtual time: many random histories against the real operator.
import { expect, test } from "bun:test"
import { search, tell } from "./simulation.ts"

const HISTORIES = Number(process.env.HISTORIES ?? 10_000)
/** Fixed, so that a change is not blamed for a history that no run before it has met; `bun run simulate` looks further. */
const SEED = Number(process.env.SEED ?? 1)

test(`${HISTORIES} histories break no promise`, () => {
  const tally = new Map<string, number>()
  const found = search(HISTORIES, SEED, { tally })
  if (found)
    throw new Error(
      `SEED=${found.seed}, path ${found.path}, after ${found.runs} histories: ${found.message}\n${tell(found.history)}`,
    )
  console.log(
    `${HISTORIES} histories from seed ${SEED}: ${tally.get("restarts")} restarts, ${tally.get("crash")} crashes, no Job lost`,
  )
  expect(tally.get("restarts")).toBeGreaterThan(HISTORIES)
}, 600_000)
