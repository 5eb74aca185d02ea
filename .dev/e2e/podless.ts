// A Job that exists anew but gets no pod, on a real cluster whose quota allows none.
import type { Meeting } from "./generations.ts"
import {
  type Check,
  calls,
  content,
  counted,
  differences,
  group,
  idleJob,
  type Namespace,
  need,
  type Operator,
  seconds,
  type Thing,
  until,
} from "./kit.ts"

const patienceMs = 120_000

/** A new Job that gets no pod is reported within a minute, and left alone. */
export const podless = (together: Meeting) =>
  group("kill: no pod", async (ns, check) => {
    together.join()
    try {
      await ns.failByHand(await ns.create("jobs", idleJob({ name: "podless", labels: { e2e: "yes" } })))
      const old = await ns.failed("podless", patienceMs)
      await ns.create("resourcequotas", { metadata: { name: "podless" }, spec: { hard: { pods: "0" } } })
      await until("the quota holds", async () => (await ns.find("resourcequotas", "podless"))?.status?.used)
      const operator = await ns.operator({ JOB_SELECTOR: "e2e=yes", RESTART_DELAY: "0", MAX_RESTARTS: "1" })
      await prove(ns, check, operator, await ns.another(old, patienceMs))
    } finally {
      together.leave()
    }
  })

async function prove(ns: Namespace, check: Check, operator: Operator, young: Thing): Promise<void> {
  const backAt = performance.now()
  await check("a new Job without a pod is said within a minute, as a WARNING and an Event", async () => {
    const line = await operator.says("that it has no pod", ["podless", /no pod/i, "WARNING"], 65_000)
    const after = performance.now() - backAt
    await until("an Event on the new Job", async () =>
      ((await ns.list("events")) as (Thing & { message?: string; involvedObject?: { uid: string } })[]).find(
        ({ message, involvedObject }) => involvedObject?.uid === young.metadata.uid && /no pod/i.test(message ?? ""),
      ),
    )
    return `after ${seconds(after)}: ${line}`
  })
  await check("once the quota has room, it gets its pod; nothing was changed that its user wrote", async () => {
    await ns.patch("resourcequotas", "podless", { spec: { hard: { pods: "5" } } })
    const job = (await ns.job("podless"))!
    await until("it has a pod", async () => (await ns.podsOf(job)).length > 0, patienceMs)
    need(job.metadata.uid === young.metadata.uid, "another Job")
    const changed = differences(content(young), content(job))
    need(changed.length === 0, `changed: ${changed.join("; ")}`)
    const patches = counted ? (await calls(ns)).filter((c) => c.verb === "patch" && c.what === "jobs") : []
    need(patches.length === 0, `${patches.length} PATCHes`)
  })
}
