// A Job's TTL does not shorten the wait that a rule asks for, whoever dies meanwhile; and a Job that a person deletes
// stays gone.
import { policy } from "./admission.ts"
import { Generations } from "./generations.ts"
import { type Check, failedAt, group, idleJob, must, type Namespace, need, prefix, seconds, until } from "./kit.ts"

const labels = { e2e: "yes" }
const settings = {
  JOB_SELECTOR: "e2e=yes",
  RESTART_RULES: "exit:3=20s, exit:4=4s, exit:5=60s, any=1h",
  CHECK_INTERVAL: "10",
}

/** What is seen of the Jobs of a namespace that a TTL may remove at once. */
class Timeline {
  private readonly failures = new Map<string, number>()
  private readonly births = new Map<string, number[]>()
  private readonly seen: Generations
  private constructor(readonly ns: Namespace) {
    this.seen = new Generations(ns)
  }
  static async of(ns: Namespace): Promise<Timeline> {
    const timeline = new Timeline(ns)
    await ns.watch("jobs", (type, job) => {
      const { name, labels } = job.metadata
      if (labels?.[`${prefix}intent`] !== undefined) return
      const failed = failedAt(job)
      if (failed !== undefined && !timeline.failures.has(name)) timeline.failures.set(name, failed)
      if (type !== "ADDED") return
      timeline.births.set(name, [...(timeline.births.get(name) ?? []), Date.parse(job.metadata.creationTimestamp)])
    })
    return timeline
  }
  /** A Job with a TTL that fails now. */
  async fails(name: string, ttlSeconds: number, exitCode = 3): Promise<void> {
    const spec = { ttlSecondsAfterFinished: ttlSeconds }
    await this.ns.failByHand(await this.ns.create("jobs", idleJob({ name, labels, spec })), exitCode)
    await until(`${name} has failed`, () => this.failures.has(name))
  }
  failed(name: string): number {
    return this.failures.get(name)!
  }
  isGone(name: string): Promise<boolean> {
    return until(`${name} is gone`, () => !this.seen.live.has(name), 60_000)
  }
  generations(name: string): number {
    return this.births.get(name)?.length ?? 0
  }
  /** Waits for the restart; answers how long after the failure it came, in whole seconds as the cluster stamps them. */
  async restart(name: string): Promise<number> {
    const births = await until(`${name} is restarted`, () => {
      const all = this.births.get(name) ?? []
      return all.length > 1 && all
    })
    return births[1]! - this.failed(name)
  }
  end(): void {
    this.seen.end()
  }
}

/** `obstacleAt`: until when nothing could have been restarted; on a slow machine that is late already. */
async function restartsOnce(timeline: Timeline, name: string, obstacleAt = 0, earliestMs = 18_000, latestMs = 30_000) {
  const after = await timeline.restart(name)
  const latest = Math.max(latestMs, obstacleAt + 15_000 - timeline.failed(name))
  need(after >= earliestMs && after <= latest, `restarted ${seconds(after)} after the failure`)
  await timeline.ns.noIntent()
  const generations = timeline.generations(name)
  need(generations === 2, `${generations - 1} restarts`)
  return `${seconds(after)} after the failure`
}

/** A case: its Jobs fail under an operator, and something happens before the restart. */
const waiting = (name: string, prove: (ns: Namespace, check: Check, timeline: Timeline) => Promise<void>) =>
  group(`ttl: ${name}`, async (ns, check) => {
    const timeline = await Timeline.of(ns)
    try {
      await prove(ns, check, timeline)
    } finally {
      timeline.end()
    }
  })

const undisturbed = () =>
  waiting("undisturbed", async (ns, check, timeline) => {
    await ns.operator(settings)
    await Promise.all(
      [0, 5].map(async (ttl) => {
        await timeline.fails(`ttl-${ttl}`, ttl)
        await check(`TTL ${ttl} s, exit:3=20s: one restart, 18 to 30 s after the failure`, () =>
          restartsOnce(timeline, `ttl-${ttl}`),
        )
      }),
    )
  })

const killed = () =>
  waiting("operator killed", async (ns, check, timeline) => {
    const first = await ns.operator(settings)
    for (const ttl of [0, 5]) await timeline.fails(`ttl-${ttl}`, ttl)
    for (const ttl of [0, 5]) await timeline.isGone(`ttl-${ttl}`)
    await until("both intents stand", async () => (await ns.intents()).length === 2, 5_000).catch(() => {})
    await first.stop("SIGKILL")
    await Bun.sleep(2_000)
    const startedAt = Date.now()
    await ns.operator(settings)
    for (const ttl of [0, 5])
      await check(`TTL ${ttl} s, the operator killed after it: one restart, 18 to 30 s after the failure`, () =>
        restartsOnce(timeline, `ttl-${ttl}`, startedAt),
      )
  })

const onlySuspended = "has(object.spec.suspend) && object.spec.suspend"

const rejected = () =>
  waiting("proof rejected", async (ns, check, timeline) => {
    await ns.operator(settings)
    const make = async (name: string, ttl: number, exitCode = 3) => {
      const spec = { ttlSecondsAfterFinished: ttl }
      return { name, exitCode, job: await ns.create("jobs", idleJob({ name, labels, spec })) }
    }
    const jobs = [await make("before-due", 5), await make("when-due", 15, 4)]
    const { lift } = await policy(ns, onlySuspended)
    await Promise.all(jobs.map(({ job, exitCode }) => ns.failByHand(job, exitCode)))
    for (const { name } of jobs) await timeline.isGone(name)
    await lift()
    const liftedAt = Date.now()
    await check("TTL 5 s, the replacement rejected until it is over: one restart, 18 to 30 s after the failure", () =>
      restartsOnce(timeline, "before-due", liftedAt),
    )
    // Whoever is rejected when it is due tries again after a while.
    await check("due after 4 s and rejected until the TTL of 15 s is over: one restart", () =>
      restartsOnce(timeline, "when-due", liftedAt + 60_000, 14_000),
    )
  })

/** A plain delete, and one like the TTL controller's, but long before the TTL. */
const deletedByPerson = () =>
  waiting("deleted by a person", async (ns, check, timeline) => {
    await ns.operator(settings)
    const cases = [
      { name: "plain", ttl: 50, propagationPolicy: "Background" },
      { name: "foreground", ttl: 50, propagationPolicy: "Foreground" },
    ]
    await Promise.all([timeline.fails("control", 1), ...cases.map(({ name, ttl }) => timeline.fails(name, ttl, 5))])
    await until("each has an intent", async () => (await ns.intents()).length >= 3, 10_000).catch(() => {})
    for (const { name, ttl, propagationPolicy } of cases) {
      await must("DELETE", ns.path("jobs", name), { propagationPolicy })
      need(Date.now() < timeline.failed(name) + (ttl - 11) * 1000, "the person came too late: its TTL was near")
    }
    await check("a Job that its TTL has removed is restarted beside them", () => restartsOnce(timeline, "control"))
    for (const { name, propagationPolicy } of cases)
      await check(`a Job that a person deletes before its TTL (${propagationPolicy}) is not restarted`, async () => {
        need(timeline.generations(name) === 1, "it was restarted")
      })
  })

export const ttlGroups = () => [undisturbed(), killed(), rejected(), deletedByPerson()]
