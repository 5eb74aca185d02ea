// 50 Jobs that fail all the time, on a real cluster whose parts are killed at random, and the operator with them.
//   bun .dev/e2e/soak.ts --minutes 30 [--seed 7]
// KUBECONFIG and E2E_IMAGE as for main.ts; E2E_CLUSTER_DIR is the directory of .dev/cluster/up.sh, whose parts are
// killed. In the first half the operator is killed too; the one that lives longest tells whether memory and sockets
// grow.
import { readdirSync, readFileSync, readlinkSync } from "node:fs"
import { parseArgs } from "node:util"
import { clusterDir, Generations, killPart, type Part, startPart } from "./generations.ts"
import {
  abandon,
  allGone,
  check,
  close,
  content,
  differences,
  failingJob,
  group,
  need,
  type Operator,
  Skip,
  seconds,
  until,
} from "./kit.ts"

const jobs = 50
const sampleMs = 2_000
/** A process grows while it warms up: what came before this does not count. */
const warmUpMs = 20_000

/** Numbers from 0 to 1 that a seed repeats (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

type Sample = { atMs: number; anonymousKiB: number; sockets: number }

function sample(pid: number): Sample | undefined {
  try {
    const anonymousKiB = Number(/^Anonymous:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "utf8"))?.[1])
    const isSocket = (fd: string) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith("socket:")
      } catch {
        return false // closed meanwhile
      }
    }
    return { atMs: performance.now(), anonymousKiB, sockets: readdirSync(`/proc/${pid}/fd`).filter(isSocket).length }
  } catch {
    return undefined // ended
  }
}

/** The slope of the line with the least squares, a minute. */
function slopeOf(samples: Sample[], pick: (sample: Sample) => number): number {
  const mean = (of: (sample: Sample) => number) => samples.reduce((sum, s) => sum + of(s), 0) / samples.length
  const x = mean((s) => s.atMs)
  const y = mean(pick)
  const spread = samples.reduce((sum, s) => sum + (s.atMs - x) ** 2, 0)
  return (samples.reduce((sum, s) => sum + (s.atMs - x) * (pick(s) - y), 0) / spread) * 60_000
}

const mib = (kib: number) => Math.round(kib / 102.4) / 10
/** At most so many values, evenly taken. */
const series = (values: number[], most = 30) =>
  values.filter((_, i) => i % Math.ceil(values.length / most) === 0).join(" ")

/** One group of checks that takes so long, and half a minute more. */
export const soakGroup = (minutes = 2, seed = Math.floor(Math.random() * 1e9)) =>
  group("soak", async (ns, check) => {
    const random = randomFrom(seed)
    const between = (fromMs: number, toMs: number) => fromMs + random() * (toMs - fromMs)
    const names = Array.from({ length: jobs }, (_, i) => `short-${String(i).padStart(2, "0")}`)
    const env = { JOB_SELECTOR: "soak=yes", RESTART_DELAY: "5", CHECK_INTERVAL: "30", LOG_LEVEL: "INFO" }
    const kills = new Map<string, number>()
    const lives = new Map<number, Sample[]>()
    console.log(`        soak of ${minutes} minutes, seed ${seed}`)
    const generations = new Generations(ns)
    for (const name of names)
      await ns.create("jobs", failingJob({ name, labels: { soak: "yes" }, annotations: { note: "kept" } }))
    const asWritten = await ns.list("jobs")
    const beganAt = performance.now()
    const endsAt = beganAt + minutes * 60_000
    let operator: Operator = await ns.operator(env)
    let deadSince: string | undefined
    const sampler = setInterval(() => {
      const taken = operator.running ? sample(operator.pid) : undefined
      if (taken) lives.set(operator.pid, [...(lives.get(operator.pid) ?? []), taken])
      if (!operator.running && !deadSince) deadSince = `an operator ended by itself: ${operator.lines.at(-1)}`
    }, sampleMs)
    const killOperator = async () => {
      deadSince = "killed"
      await operator.stop("SIGKILL")
      await Bun.sleep(between(0, 2_000))
      // Not by ns.operator: its kubeconfig comes from the API server, which may be away.
      operator = await until("a new operator", () => ns.operator(env).catch(() => undefined), 120_000)
      deadSince = undefined
    }
    const killPartAwhile = (part: Part) => async () => {
      await killPart(part)
      await Bun.sleep(between(200, 4_000))
      await startPart(part)
    }
    const mischief: [string, () => Promise<void>][] = [
      ["kube-apiserver", killPartAwhile("kube-apiserver")],
      ["kube-controller-manager", killPartAwhile("kube-controller-manager")],
      ["operator", killOperator],
      ["operator", killOperator],
    ]

    await check(`50 Jobs that fail all the time, ${minutes} minutes of kills: none is lost`, async () => {
      if (!clusterDir) throw new Skip("E2E_CLUSTER_DIR is not set")
      const calmMs = 15_000 // at the end, to come to rest
      for (let first = true; ; first = false) {
        await Bun.sleep(first ? 8_000 : between(4_000, Math.max(12_000, minutes * 2_000)))
        if (performance.now() > endsAt - calmMs) break
        const isSecondHalf = performance.now() > (beganAt + endsAt) / 2
        const [what, kill] = mischief[Math.floor(random() * (isSecondHalf ? 2 : mischief.length))]!
        kills.set(what, (kills.get(what) ?? 0) + 1)
        await kill()
      }
      await Bun.sleep(Math.max(0, endsAt - performance.now()))
      const restarts = names.reduce((sum, name) => sum + (generations.of.get(name)?.length ?? 1) - 1, 0)
      clearInterval(sampler)
      need(!deadSince, deadSince ?? "")
      const code = await operator.stop()
      need(code === 0, `exit code ${code}`)
      // What is left is finished by one that restarts nothing.
      await ns.operator({ ...env, JOB_SELECTOR: "soak=no" })
      const there = () => names.filter((name) => generations.live.has(name))
      await until("all Jobs are there", () => there().length === jobs, 90_000).catch(() => {})
      const lost = names.filter((name) => !there().includes(name))
      need(lost.length === 0, `lost: ${lost.join(", ")}`)
      // A node that is busy takes a minute for a pod: how often depends on the machine.
      const never = names.filter((name) => (generations.of.get(name)?.length ?? 0) < 2)
      need(never.length === 0, `never restarted: ${never.join(", ")}`)
      const changed = asWritten.flatMap((job) =>
        differences(content(job), content(generations.live.get(job.metadata.name)!)),
      )
      need(changed.length === 0, `changed: ${changed.slice(0, 5).join("; ")}`)
      const killed = [...kills].map(([what, count]) => `${what} ${count} times`).join(", ")
      return `${restarts} restarts, killed ${killed}, lost 0, longest absence ${seconds(generations.longestGapMs)}`
    })
    clearInterval(sampler)
    if (!clusterDir) return generations.end()
    await check("no Job ever had pods of two generations", async () => {
      need(
        generations.doubled.length === 0,
        `${generations.doubled.length}: ${generations.doubled.slice(0, 5).join("; ")}`,
      )
      return "doubled 0"
    })
    await check("no intent is left", async () => {
      await until("no intent is left", () => generations.intents.length === 0, 120_000).catch(() => {})
      need(generations.intents.length === 0, `leaked: ${generations.intents.join(", ")}`)
      return "leaked 0"
    })
    generations.end()

    const longest = [...lives.values()].sort((a, b) => a.length - b.length).at(-1) ?? []
    const warm = longest.filter(({ atMs }) => atMs > (longest[0]?.atMs ?? 0) + warmUpMs)
    const life = `of an operator that lived ${seconds((longest.at(-1)?.atMs ?? 0) - (longest[0]?.atMs ?? 0))}`
    await check(
      "anonymous memory is flat: its least in the last third is not above one and a half of that in the first",
      async () => {
        need(warm.length >= 6, `only ${warm.length} samples`)
        const slope = slopeOf(warm, (s) => s.anonymousKiB)
        const least = (part: Sample[]) => Math.min(...part.map((s) => s.anonymousKiB))
        const [first, last] = [warm.slice(0, warm.length / 3), warm.slice(-warm.length / 3)].map(least) as [
          number,
          number,
        ]
        const figures = `least ${mib(first)}, then ${mib(last)} MiB; ${slope.toFixed(0)} KiB a minute ${life}`
        const said = `${figures}; MiB: ${series(warm.map((s) => mib(s.anonymousKiB)))}`
        // What lies between two collections says nothing of a leak.
        need(last < 1.5 * first, said)
        return said
      },
    )
    await check("open sockets do not grow: never more than two for each Job, and ten", async () => {
      const said = `most ${Math.max(...longest.map((s) => s.sockets))}; ${series(longest.map((s) => s.sockets))}`
      need(longest.length > 0 && longest.every((s) => s.sockets <= 2 * jobs + 10), said)
      return said
    })
  })

if (import.meta.main) {
  const { values } = parseArgs({ options: { minutes: { type: "string", default: "30" }, seed: { type: "string" } } })
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      abandon().finally(() => process.exit(1))
    })
  await soakGroup(Number(values.minutes), values.seed === undefined ? undefined : Number(values.seed))
  await check("end", "the namespace is gone", () => allGone().then(() => ""))
  process.exit((await close()) ? 0 : 1)
}
