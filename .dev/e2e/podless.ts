// A Job that exists anew but gets no pod, on a real cluster whose quota allows none.
import type { Meeting } from "./generations.ts"
import {
  type Check,
  calls,
  content,
  counted,
  differences,
  failingJob,
  group,
  type Namespace,
  need,
  type Operator,
  Skip,
  seconds,
  type Thing,
  until,
} from "./kit.ts"

const patienceMs = 120_000

/** A new Job that gets no pod: noticed within a minute, said, and touched once. */
export const podless = (together: Meeting) =>
  group("kill: no pod", async (ns, check) => {
    together.join()
    try {
      await ns.create("jobs", failingJob({ name: "podless", labels: { e2e: "yes" } }))
      const old = await ns.failed("podless", patienceMs)
      await ns.create("roles", {
        metadata: { name: "patch" },
        rules: [{ apiGroups: ["batch"], resources: ["jobs"], verbs: ["patch"] }],
      })
      const subjects = [{ kind: "ServiceAccount", name: "operator", namespace: ns.name }]
      const roleRef = { apiGroup: "rbac.authorization.k8s.io", kind: "Role", name: "patch" }
      await ns.create("rolebindings", { metadata: { name: "patch" }, roleRef, subjects })
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
  await check("it is touched once: one PATCH, and nothing changes that its user wrote", async () => {
    if (!counted) throw new Skip("not counted")
    const patches = async () => (await calls(ns)).filter(({ verb, what }) => verb === "patch" && what === "jobs")
    await until("a PATCH", async () => (await patches()).length > 0, 10_000)
    await Bun.sleep(5_000)
    need((await patches()).length === 1, `${(await patches()).length} PATCHes`)
    const changed = differences(content(young), content((await ns.job("podless"))!))
    need(changed.length === 0, `changed: ${changed.join("; ")}`)
  })
  await check("once the quota has room, it gets its pod", async () => {
    await ns.patch("resourcequotas", "podless", { spec: { hard: { pods: "5" } } })
    const job = await ns.failed("podless", patienceMs)
    need(job.metadata.uid === young.metadata.uid, "another Job")
  })
}
