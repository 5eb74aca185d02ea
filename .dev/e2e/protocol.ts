// No other tool can act on an intent, and nothing is deleted that the cluster would not take back: with kubectl's
// prunes, with people who edit intents, with policies, quotas and webhooks, on a real cluster.
import { policy, webhook } from "./admission.ts"
import { answered } from "./commands.ts"
import { Generations } from "./generations.ts"
import {
  type Check,
  calls,
  content,
  counted,
  differences,
  failingJob,
  group,
  hasNode,
  hold,
  idleJob,
  type Json,
  type Manifest,
  type Namespace,
  need,
  type Operator,
  type Options,
  prefix,
  seconds,
  suspendedJob,
  type Thing,
  until,
} from "./kit.ts"
import { kubectlProgram, tryCommand } from "./programs.ts"
import { ttlGroups } from "./ttl.ts"
import { versionGroups } from "./versions.ts"

const now = () => performance.now()
const intentLabel = `${prefix}intent`
const e2e = { e2e: "yes" }
const once = { JOB_SELECTOR: "e2e=yes", RESTART_DELAY: "0", MAX_RESTARTS: "1", CHECK_INTERVAL: "5" }
/**
 * A rejected restart is tried again after at most 30 s, 60 s, 120 s: two that need one place of a quota may meet twice.
 */
const patienceMs = 240_000

/** The intents that stand for a Job. */
async function intentsOf(ns: Namespace, job: string): Promise<Thing[]> {
  const isOf = ({ metadata }: Thing) => metadata.labels?.[intentLabel] === job && !metadata.deletionTimestamp
  return (await ns.list("jobs")).filter(isOf)
}
const isSame = (job: Thing | undefined, old: Thing) =>
  job?.metadata.uid === old.metadata.uid && job.metadata.deletionTimestamp === undefined

/** The Job is back, as it was, and no intent is left. */
async function isBack(ns: Namespace, old: Thing, ms = patienceMs): Promise<Thing> {
  const young = await ns.another(old, ms)
  const changed = differences(content(old), content(young))
  need(changed.length === 0, `changed: ${changed.join("\n")}`)
  return young
}

/** A Job that has failed. A finalizer will keep it from going. */
async function heldFailure(ns: Namespace, name: string): Promise<Thing> {
  const job = await until(`Job ${name} is there`, () => ns.job(name))
  if ((job.spec as { template: { spec: { schedulerName: string } } }).template.spec.schedulerName === "nobody")
    await ns.failByHand(job)
  return ns.hold("jobs", await ns.failed(name))
}

/** Waits until the operator has deleted a Job that a finalizer holds; answers the intent. */
async function restarting(ns: Namespace, old: Thing): Promise<Thing> {
  const { name } = old.metadata
  await until(`Job ${name} is terminating`, async () => (await ns.job(name))?.metadata.deletionTimestamp)
  const [intent] = await intentsOf(ns, name)
  need(intent, `no intent stands for ${name}`)
  return intent
}

// ---------------------------------------------------------------- 1: other tools prune

const toolLabels = (ns: Namespace) => ({
  ...e2e,
  app: ns.name,
  "app.kubernetes.io/instance": ns.name,
  "argocd.argoproj.io/instance": "photos",
  "kapp.k14s.io/app": "1700000000",
  "objectset.rio.cattle.io/hash": "0a1b2c",
  "kustomize.toolkit.fluxcd.io/name": "photos",
})
const toolAnnotations = {
  "argocd.argoproj.io/tracking-id": "photos:batch/Job:photos/dl",
  "meta.helm.sh/release-name": "photos",
}
/** What an applied folder still holds after the Job was taken out of it. */
const rest = (ns: Namespace): Manifest => ({
  apiVersion: "v1",
  kind: "ConfigMap",
  metadata: { name: "rest", labels: { app: ns.name } },
})
async function kubectl(ns: Namespace, line: string, input: Manifest[] = [], env = {}): Promise<string> {
  const text = input.map((manifest) => JSON.stringify(manifest)).join("\n")
  const { code, out, err } = await tryCommand([kubectlProgram, "-n", ns.name, ...line.split(" ")], text, env)
  need(code === 0, `kubectl ${line}: ${err || out}`)
  return out
}
const APPLYSET = { KUBECTL_APPLYSET: "true" }
const applySet = (ns: Namespace, ...manifests: Manifest[]) =>
  kubectl(ns, "apply --prune --applyset=e2e -f -", manifests, APPLYSET)

interface Pruner {
  name: string
  apply(ns: Namespace, job: Manifest): Promise<unknown>
  prune(ns: Namespace, old: Thing): Promise<unknown>
}
const pruners: Pruner[] = [
  {
    name: "kubectl apply --prune",
    apply: (ns, job) => kubectl(ns, "apply -f -", [job, rest(ns)]),
    prune: (ns) => kubectl(ns, `apply --prune -l app=${ns.name} -f -`, [rest(ns)]),
  },
  {
    name: "an ApplySet prune",
    apply: (ns, job) => applySet(ns, job, rest(ns)),
    prune: (ns) => applySet(ns, rest(ns)),
  },
  {
    name: "a delete by each of the Job's labels",
    apply: (ns, job) => ns.create("jobs", job),
    prune: async (ns, old) => {
      for (const [key, value] of Object.entries(old.metadata.labels ?? {}))
        await kubectl(ns, `delete jobs --wait=false --ignore-not-found -l ${key}=${value}`)
    },
  },
]

const pruned = ({ name, apply, prune }: Pruner) =>
  group(`protocol: ${name}`, async (ns, check) => {
    await apply(ns, failingJob({ name: "dl", labels: toolLabels(ns), annotations: toolAnnotations }))
    const old = await heldFailure(ns, "dl")
    await ns.operator(once)
    const intent = await restarting(ns, old)
    await check("the intent carries no label and no annotation of the Job's", async () => {
      const { labels = {}, annotations = {} } = intent.metadata
      const shared = Object.keys({ ...old.metadata.labels, ...old.metadata.annotations }).filter(
        (key) => key in labels || key in annotations,
      )
      need(shared.length === 0, shared.join(", "))
    })
    await check(`${name}, while a finalizer holds the old Job: it comes back`, async () => {
      await prune(ns, old)
      const left = await intentsOf(ns, "dl")
      await ns.release("jobs", old)
      await isBack(ns, old, 30_000).catch((error) => {
        throw new Error(`${error.message}; ${left.length} intents were left by the prune`)
      })
      await ns.noIntent()
    })
  })

// ---------------------------------------------------------------- 2: someone changes an intent

const tamperings: { name: string; patch: Json }[] = [
  { name: "resumed", patch: { spec: { suspend: false } } },
  { name: "scaled", patch: { spec: { parallelism: 3 } } },
  {
    name: "edited",
    patch: { spec: { suspend: false, template: { metadata: { annotations: { edited: "yes" } } } } },
  },
]

/** `isReal`: its pods run; without a node a pod that exists is one too many. */
const tampered = (isReal: boolean) =>
  group(`protocol: tampered ${isReal ? "on a node" : "without a node"}`, async (ns, check) => {
    const seen = new Generations(ns)
    const make = isReal ? failingJob : idleJob
    for (const { name } of tamperings) await ns.create("jobs", make({ name, labels: e2e }))
    await ns.create("jobs", suspendedJob({ name: "control", pod: { schedulerName: "nobody" } }))
    const olds = await Promise.all(tamperings.map(({ name }) => heldFailure(ns, name)))
    await ns.operator(once)
    const intents = await Promise.all(olds.map((old) => restarting(ns, old)))
    await check("an intent that is resumed, scaled or edited gets no pod within 10 s", async () => {
      for (const [i, { patch }] of tamperings.entries())
        await ns.patch("jobs", intents[i]!.metadata.name, patch).catch((error) => {
          need(/40[49]|422/.test(error.message), error.message) // gone, or immutable by now: no pod either
        })
      await ns.patch("jobs", "control", { spec: { suspend: false } })
      await until("a Job that is resumed beside them has a pod", () => seen.podsOf("control").length > 0)
      await Bun.sleep(10_000)
      for (const { metadata } of intents) {
        const pods = seen.podsEver(metadata.uid)
        need(pods === 0, `${metadata.name} got ${pods} pods`)
      }
    })
    await check("each Job comes back once, and its program runs once", async () => {
      for (const old of olds) await ns.release("jobs", old)
      for (const old of olds) {
        const young = await isBack(ns, old)
        await until(`${young.metadata.name} has a pod`, () => seen.podsEver(young.metadata.uid) > 0)
        if (!isReal) await ns.failByHand(young)
        await ns.failed(young.metadata.name)
      }
      await ns.noIntent()
      for (const { metadata } of olds) {
        const uids = seen.of.get(metadata.name)!.map(({ uid }) => uid)
        const pods = uids.map((uid) => seen.podsEver(uid))
        need(Bun.deepEquals(pods, [1, 1]), `${metadata.name}: pods of its generations ${pods.join(", ")}`)
      }
      for (const { metadata } of intents) need(seen.podsEver(metadata.uid) === 0, `${metadata.name} got a pod`)
    })
    seen.end()
  })

// ---------------------------------------------------------------- 3: what would be rejected is not deleted

/** Until the obstacle is removed the old Job stands, and log, Event and `status` quote the server; then it restarts. */
async function standsWhileRejected(
  ns: Namespace,
  check: Check,
  rejected: { old: Thing; operator: Operator; quote: string; lift: () => Promise<unknown>; isEdited?: boolean },
): Promise<void> {
  const { old, operator, quote, lift, isEdited } = rejected
  const { name } = old.metadata
  await check("nothing is deleted, and the log quotes the server", async () => {
    const line = await operator.says("what the server said", [`/${name}]`, quote])
    const job = await ns.job(name)
    need(isSame(job, old), job ? "the Job was deleted" : "the Job is gone")
    if (counted) need(!(await calls(ns)).some((c) => c.verb === "delete" && c.name === name), "a DELETE was sent")
    return line
  })
  await check("an Event on the Job quotes the server", () =>
    until(
      "the Event",
      async () => {
        const events = (await ns.list("events")) as (Thing & {
          message?: string
          involvedObject?: { name: string }
        })[]
        return events.find((e) => e.involvedObject?.name === name && e.message?.includes(quote))?.message
      },
      15_000,
    ),
  )
  await check("`status` quotes the server", () =>
    until("`status` quotes the server", async () => (await answered(ns, "status")).includes(quote), 5_000).then(
      () => "",
    ),
  )
  await check("once the obstacle is removed, it restarts by itself", async () => {
    need(isSame(await ns.job(name), old), "the old Job does not stand any more")
    await lift()
    const at = now()
    await (isEdited ? ns.another(old, patienceMs) : isBack(ns, old))
    await ns.noIntent()
    return `after ${seconds(now() - at)}`
  })
}

async function owner(ns: Namespace): Promise<Json> {
  const { metadata } = await ns.create("configmaps", { metadata: { name: "owner" } })
  return { apiVersion: "v1", kind: "ConfigMap", name: "owner", uid: metadata.uid }
}
async function failed(ns: Namespace, manifest: Manifest, exitCode = 3, reason = "Error"): Promise<Thing> {
  const job = await ns.create("jobs", manifest)
  await ns.failByHand(job, exitCode, reason)
  return ns.failed(job.metadata.name)
}

const rejections = [
  {
    what: "no owners",
    expression: "!has(object.metadata.ownerReferences) || size(object.metadata.ownerReferences) == 0",
    manifest: async (ns: Namespace) => {
      const manifest = idleJob({ name: "dl", labels: e2e })
      return { ...manifest, metadata: { ...manifest.metadata, ownerReferences: [await owner(ns)] } }
    },
  },
  {
    what: "only suspended Jobs",
    expression: "has(object.spec.suspend) && object.spec.suspend",
    manifest: async () => idleJob({ name: "dl", labels: e2e }),
  },
].map(
  ({ what, expression, manifest }) =>
    () =>
      group(`protocol: rejected, ${what}`, async (ns, check) => {
        const old = await failed(ns, await manifest(ns))
        const { message, lift } = await policy(ns, expression)
        const operator = await ns.operator(once)
        await standsWhileRejected(ns, check, { old, operator, quote: message, lift })
      }),
)

const tooMuchMemory = () =>
  group("protocol: rejected, memory above the pod's limit", async (ns, check) => {
    const memory = (limit: string) => ({ requests: { memory: limit }, limits: { memory: limit } })
    const old = await failed(
      ns,
      idleJob({
        name: "dl",
        labels: e2e,
        annotations: { [`${prefix}oom-memory-max`]: "1Gi" },
        container: { resources: memory("32Mi") },
        pod: { resources: memory("40Mi") },
      }),
      137,
      "OOMKilled",
    )
    const operator = await ns.operator(once)
    const most = { metadata: { annotations: { [`${prefix}oom-memory-max`]: "40Mi" } } }
    await standsWhileRejected(ns, check, {
      old,
      operator,
      quote: "must be less than or equal to pod",
      lift: () => ns.patch("jobs", "dl", most),
      isEdited: true,
    })
  })

const quota = (free: number) =>
  group(`protocol: quota, ${free} free`, async (ns, check) => {
    const olds = [
      await failed(ns, idleJob({ name: "one", labels: e2e })),
      await failed(ns, idleJob({ name: "two", labels: e2e })),
    ]
    const hard = (places: number) => ({ spec: { hard: { "count/jobs.batch": String(places) } } })
    await ns.create("resourcequotas", { metadata: { name: "jobs" }, ...hard(2 + free) })
    await until("the quota counts", async () =>
      Bun.deepEquals((await ns.find("resourcequotas", "jobs"))?.status?.used, { "count/jobs.batch": "2" }),
    )
    const seen = new Generations(ns)
    const operator = await ns.operator(once)
    if (free < 2) {
      await check("two restarts at once: both old Jobs stand, and the log quotes the server", async () => {
        for (const { metadata } of olds) await operator.says("why", [`/${metadata.name}]`, /exceeded quota/])
        for (const old of olds) need(isSame(await ns.job(old.metadata.name), old), `${old.metadata.name} was deleted`)
        await ns.noIntent()
        for (const old of olds) need(isSame(await ns.job(old.metadata.name), old), `${old.metadata.name} was deleted`)
      })
      await ns.patch("resourcequotas", "jobs", hard(6))
    }
    await check(
      `${free < 2 ? "once there is room" : "two restarts at once"}: both come back by themselves`,
      async () => {
        const begun = now()
        await Promise.all(olds.map((old) => isBack(ns, old)))
        await ns.noIntent()
        return `after ${seconds(now() - begun)}; longest absence ${seconds(seen.longestGapMs)}`
      },
    )
    seen.end()
  })

// ---------------------------------------------------------------- 4: policies that ask for what an intent lacks

const demands: { what: string; expression: string; options: Partial<Options> }[] = [
  {
    what: "a label",
    expression: "has(object.metadata.labels) && 'team' in object.metadata.labels",
    options: { labels: { ...e2e, team: "photos" } },
  },
  {
    what: "activeDeadlineSeconds",
    expression: "has(object.spec.activeDeadlineSeconds)",
    options: { spec: { activeDeadlineSeconds: 3600 } },
  },
  {
    what: "an annotation",
    expression: "has(object.metadata.annotations) && 'example.com/cost' in object.metadata.annotations",
    options: { annotations: { "example.com/cost": "12" } },
  },
]
const demanded = ({ what, expression, options }: (typeof demands)[number]) =>
  group(`protocol: required, ${what}`, async (ns, check) => {
    const job = idleJob({ name: "dl", labels: e2e, ...options })
    await applySet(ns, job, rest(ns))
    const old = await heldFailure(ns, "dl")
    await policy(ns, expression)
    await ns.operator(once)
    await check(`a policy requires ${what}: the Job is restarted, and an ApplySet prune does not lose it`, async () => {
      await restarting(ns, old)
      await applySet(ns, rest(ns))
      await ns.release("jobs", old)
      await isBack(ns, old, 30_000)
      await ns.noIntent()
    })
  })

// ---------------------------------------------------------------- 5: webhooks that change what is written

const ours = (object: Json) =>
  (object as { metadata: { labels?: Record<string, string> } }).metadata.labels?.[intentLabel] !== undefined
const webhooks = [
  {
    does: "drops the intent's annotations",
    named: /annotation/,
    judge: () => (object: Json) =>
      ours(object) ? { patch: [{ op: "remove", path: "/metadata/annotations" }] } : undefined,
  },
  {
    does: "adds an owner",
    named: /owner/,
    judge: (ref: Json) => () => ({ patch: [{ op: "add", path: "/metadata/ownerReferences", value: [ref] }] }),
  },
  {
    does: "adds a finalizer",
    named: /finalizer/,
    judge: () => () => ({ patch: [{ op: "add", path: "/metadata/finalizers", value: [hold] }] }),
  },
  {
    does: "answers 409 AlreadyExists",
    named: /denied the request|jobs\.e2e\.example\.com/,
    judge: () => (object: Json) => {
      if (ours(object)) return undefined
      const message = 'jobs.batch "dl" already exists'
      const details = { name: "dl", group: "batch", kind: "jobs" }
      return { reject: { status: "Failure", code: 409, reason: "AlreadyExists", message, details } }
    },
  },
].map(
  ({ does, named, judge }) =>
    () =>
      group(`protocol: a webhook ${does}`, async (ns, check) => {
        const old = await failed(ns, idleJob({ name: "dl", labels: e2e }))
        const judgeOne = judge(await owner(ns))
        const { lift } = await webhook(ns, ({ object }) => judgeOne(object))
        const operator = await ns.operator(once)
        await check("nothing is deleted, and the log names what the webhook did", async () => {
          const line = await operator.says("what the webhook did", ["/dl]", named, /WARNING|ERROR/])
          const job = await ns.job("dl")
          need(isSame(job, old), job ? "the Job was deleted" : "the Job is gone")
          if (counted) need(!(await calls(ns)).some((c) => c.verb === "delete" && c.name === "dl"), "a DELETE was sent")
          return line
        })
        await check("without the webhook it restarts by itself", async () => {
          need(isSame(await ns.job("dl"), old), "the old Job does not stand any more")
          await lift()
          for (const intent of await ns.intents()) await ns.release("jobs", intent)
          const at = now()
          await isBack(ns, old)
          await ns.noIntent()
          return `after ${seconds(now() - at)}`
        })
      }),
)

// ---------------------------------------------------------------- 8: nobody may update Jobs

const noUpdates = () =>
  group("protocol: updates of Jobs are denied", async (ns, check) => {
    const old = await failed(ns, idleJob({ name: "dl", labels: e2e }))
    await policy(ns, "false", "UPDATE")
    await ns.operator(once)
    await check("the garbage collector cannot end the delete: the restart completes all the same", async () => {
      await until("the Job is terminating", async () => (await ns.job("dl"))?.metadata.deletionTimestamp, 60_000)
      const at = now()
      await isBack(ns, old)
      await ns.noIntent()
      return `${seconds(now() - at)} after the delete`
    })
  })

// ---------------------------------------------------------------- all of them

/** A control plane without a node runs only those that need none. */
export async function protocolGroups(): Promise<void> {
  const isReal = await hasNode()
  await Promise.all([
    tampered(isReal),
    ...(isReal ? [...pruners.map(pruned), ...versionGroups()] : []),
    ...rejections.map((run) => run()),
    tooMuchMemory(),
    ...[0, 1, 2].map(quota),
    ...demands.map(demanded),
    ...webhooks.map((run) => run()),
    noUpdates(),
    ...ttlGroups(),
  ])
}
