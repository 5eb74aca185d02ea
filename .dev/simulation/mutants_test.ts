// Wrong versions of the operator: the simulation must catch every one. A rule that is wrong, or one effect that goes
// astray.
import { describe, expect, test } from "bun:test"
import * as operator from "../../operator.ts"
import { type Action, type History, PLAIN, PLAIN_JOB } from "./histories.ts"
import { jobOfIntent } from "./network.ts"
import { currentProgram, type Program } from "./programs.ts"
import { search, simulate, Violation } from "./simulation.ts"

const { RULES } = operator
type Rules = typeof RULES
type Observation = operator.Observation
type Step = operator.Step

/** Reads an intent as if no webhook had given it an owner or a finalizer. */
const alwaysSafe: typeof RULES.readIntent = (job) => {
  const intent = RULES.readIntent(job)
  return intent && { ...intent, unsafe: false }
}

/** A wrong nextStep(): what it sees, or what it says, is changed. */
const seeing = (change: (seen: Observation) => Partial<Observation>): Partial<Rules> => ({
  nextStep: (seen, now) => RULES.nextStep({ ...seen, ...change(seen) }, now),
})
const saying = (change: (step: Step, seen: Observation) => Step): Partial<Rules> => ({
  nextStep: (seen, now) => change(RULES.nextStep(seen, now), seen),
})
type Verbs = Partial<operator.Cluster>
const withVerbs = (verbs: (cluster: operator.Cluster) => Verbs) => (cluster: operator.Cluster) => ({
  ...cluster,
  ...verbs(cluster),
})
const isIntent = (name: string | undefined) => jobOfIntent(name) !== undefined
const isIntentJob = ({ metadata }: operator.Job) => isIntent(metadata?.name)

/** Caught within so many random histories, of these actions, or by its own history with one of these seeds. */
const WITHIN = 3_000
const SEEDS = Array.from({ length: 20 }, (_, i) => i)
interface Mutant {
  name: string
  program: Program
  actions?: Action["do"][]
  history?: Omit<History, "seed">
  /** One that finds it early, where 1 takes hundreds of histories. */
  seed?: number
}

const RULE_MUTANTS: Mutant[] = [
  {
    name: "create without waiting for the old pods",
    program: currentProgram({ rules: { blocksReplacement: () => false } }),
    actions: ["delete"],
  },
  {
    name: "take every answer to a dry run for a yes",
    program: currentProgram({ rules: { verdictOf: () => ({ admitted: true }) } }),
    actions: ["admission"],
  },
  {
    name: "take a webhook's AlreadyExists for the server's",
    program: currentProgram({
      rules: {
        verdictOf: (error, name) =>
          (error as { reason?: string }).reason === "AlreadyExists" ? { admitted: true } : RULES.verdictOf(error, name),
      },
    }),
    seed: 3,
    actions: ["admission"],
  },
  {
    name: "overlook what a webhook did to an intent",
    program: currentProgram({ rules: { flawOf: () => undefined, readIntent: alwaysSafe } }),
    actions: ["admission", "crash"],
  },
  {
    name: "write intents that may run",
    program: currentProgram({
      rules: {
        intentFor: (draft, wide) => {
          const intent = RULES.intentFor(draft, wide)
          return { ...intent, spec: { ...intent.spec!, parallelism: 1, managedBy: "kubernetes.io/job-controller" } }
        },
        flawOf: () => undefined,
      },
    }),
    actions: ["editIntent", "node"],
  },
  {
    name: "write intents that a tool prunes",
    program: currentProgram({
      rules: {
        intentFor: (draft, wide) => {
          const intent = RULES.intentFor(draft, wide)
          const { labels, annotations } = draft.replacement.metadata ?? {}
          const metadata = {
            ...intent.metadata,
            labels: { ...labels, ...intent.metadata?.labels },
            annotations: { ...annotations, ...intent.metadata?.annotations },
          }
          return { ...intent, metadata }
        },
      },
    }),
    history: {
      flavour: PLAIN,
      events: [{ at: { on: "deleteJob", nth: 0, after: true }, action: { do: "prune", by: "kubectl apply --prune" } }],
    },
  },
  {
    name: "write the due time into no intent",
    program: currentProgram({
      rules: {
        draftOf: (plan) => RULES.draftOf({ ...plan, dueAt: undefined }),
      },
    }),
  },
  {
    name: "create what the Job was before the last edit of its owner",
    program: currentProgram({ rules: seeing(({ intents }) => ({ latest: undefined, live: undefined, intents })) }),
  },
  {
    name: "go by the oldest intent",
    program: currentProgram({ rules: seeing(({ intents }) => ({ intents: intents.toReversed() })) }),
    actions: ["edit", "node", "crash"],
    seed: 7,
  },
  {
    name: "overlook edits of the terminating Job",
    program: currentProgram({
      rules: seeing(({ live, latest }) => ({ rejectedEdit: (live ?? latest)?.metadata?.resourceVersion })),
    }),
    actions: ["edit", "node", "slow"],
  },
  {
    name: "remove the intent of a Job that is terminating",
    program: currentProgram({
      rules: saying((step, { live, intents }) =>
        step.do === "wait" && live
          ? { do: "clean up", intents, outcome: { result: "changed" }, withdraw: false }
          : step,
      ),
    }),
  },
  {
    name: "take absence for a person's delete",
    program: currentProgram({
      rules: saying((step, { intents }) =>
        step.do === "create" ? { do: "clean up", intents, outcome: { result: "cancelled" }, withdraw: false } : step,
      ),
    }),
  },
  {
    name: "take a person's delete for the TTL's",
    program: currentProgram({ rules: { wasDeletedByPerson: () => false } }),
    actions: ["delete"],
    history: {
      flavour: { ...PLAIN, jobs: [{ ...PLAIN_JOB, ttlSeconds: 150 }], delayMs: 200_000 },
      events: [{ at: { ms: 60_000 }, action: { do: "delete", name: "a", policy: "Background" } }],
    },
  },
  {
    name: "judge what a TTL took by the TTL to which it was edited meanwhile",
    program: currentProgram({
      rules: { wasDeletedByPerson: (last, dueAt) => RULES.wasDeletedByPerson(last, dueAt) },
    }),
    history: {
      // A finalizer holds the Job, so that the intent for the edit is written before the Job is gone.
      flavour: { ...PLAIN, jobs: [{ ...PLAIN_JOB, ttlSeconds: 30, holdMs: 10_000 }], delayMs: 200_000 },
      events: [{ at: { on: "getJob", nth: 1, after: false }, action: { do: "edit", name: "a", what: "ttl" } }],
    },
  },
  {
    name: "delete a Job that was edited after its intent",
    program: currentProgram({
      rules: seeing(({ live, intents: [intent] }) =>
        live && intent && !live.metadata?.deletionTimestamp
          ? { live: { ...live, metadata: { ...live.metadata, resourceVersion: intent.jobVersion } } }
          : {},
      ),
      cluster: withVerbs((cluster) => ({
        deleteJob: (namespace, name, { resourceVersion: _, ...options }, signal) =>
          cluster.deleteJob(namespace, name, options, signal),
      })),
    }),
    actions: ["edit", "crash", "slow"],
  },
  {
    name: "take any uid for the new Job, however old",
    program: currentProgram({
      rules: {
        nextStep: (seen, now) => {
          const [intent] = seen.intents
          const isOther = intent && seen.latest && seen.latest.metadata?.uid !== intent.jobUid
          if (!isOther) return RULES.nextStep(seen, now)
          return { do: "clean up", intents: seen.intents, outcome: { result: "changed" }, withdraw: false }
        },
      },
    }),
    seed: 7,
  },
  {
    name: "leave intents whose Job has come back",
    program: currentProgram({
      rules: saying((step) => (step.do === "clean up" && step.outcome ? { do: "done", outcome: step.outcome } : step)),
    }),
  },
  {
    name: "decide without a fresh look",
    program: currentProgram({
      rules: {
        desiredFor: (...[job, failure, config, now]) => {
          const desired = RULES.desiredFor(job, failure, config, now)
          return { ...desired, decision: { do: "restart", dueAt: now, because: "it was due" } }
        },
      },
    }),
    actions: ["edit", "slow"],
  },
  {
    name: "create before it is due",
    program: currentProgram({ rules: { nextStep: (seen) => RULES.nextStep(seen, Number.MAX_SAFE_INTEGER) } }),
  },
]

const EFFECT_MUTANTS: Mutant[] = [
  {
    name: "skip the intent",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        createJob: async (namespace, job, options, signal) =>
          isIntentJob(job)
            ? { ...job, metadata: { ...job.metadata, namespace, uid: "none", resourceVersion: "1" } }
            : cluster.createJob(namespace, job, options, signal),
        getJob: async (namespace, name, signal) => cluster.getJob(namespace, name, signal),
      })),
    }),
  },
  {
    name: "skip the proof",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        createJob: async (namespace, job, options, signal) => {
          if (!options.dryRun) return cluster.createJob(namespace, job, options, signal)
          throw new operator.ApiError(409, "AlreadyExists", `jobs.batch "${job.metadata?.name}" already exists`)
        },
      })),
    }),
  },
  {
    name: "prove by creating",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        createJob: (namespace, job, { dryRun: _, ...options }, signal) =>
          cluster.createJob(namespace, job, options, signal),
      })),
    }),
  },
  {
    name: "prove something else than the intent holds",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        createJob: (namespace, job, options, signal) => {
          if (!options.dryRun) return cluster.createJob(namespace, job, options, signal)
          const { labels: _, ...metadata } = job.metadata ?? {}
          return cluster.createJob(namespace, { ...job, metadata }, options, signal)
        },
      })),
    }),
  },
  ...(
    [
      ["drop uid and version from the delete", {}],
      ["drop the version from the delete", { keepsUid: true }],
    ] as const
  ).map(
    ([name, { keepsUid = false }]: readonly [string, { keepsUid?: boolean }]): Mutant => ({
      name,
      program: currentProgram({
        cluster: withVerbs((cluster) => ({
          deleteJob: (namespace, job, options, signal) => {
            if (isIntent(job)) return cluster.deleteJob(namespace, job, options, signal)
            const { propagationPolicy, uid } = options
            const kept = { propagationPolicy, ...(keepsUid && { uid }) } as operator.DeleteOptions
            return cluster.deleteJob(namespace, job, kept, signal)
          },
        })),
      }),
      actions: ["edit", "slow", "recreate"],
    }),
  ),
  {
    name: "delete in the background",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        deleteJob: (namespace, name, options, signal) =>
          cluster.deleteJob(namespace, name, { ...options, propagationPolicy: "Background" }, signal),
      })),
    }),
  },
  {
    name: "leave the intents",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        deleteJob: async (namespace, name, options, signal) => {
          if (!isIntent(name)) await cluster.deleteJob(namespace, name, options, signal)
        },
      })),
    }),
  },
  {
    name: "remove the intent before the create",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        createJob: async (namespace, job, options, signal) => {
          const { items } = await cluster.listJobs(namespace, "", (one) => one, signal)
          const name = job.metadata?.name
          if (!options.dryRun && !isIntentJob(job))
            for (const { metadata = {} } of items.filter((one) => jobOfIntent(one.metadata?.name) === name)) {
              const removal = { uid: metadata.uid ?? "", propagationPolicy: "Background" } as const
              await cluster.deleteJob(namespace, metadata.name ?? "", removal, signal)
            }
          return cluster.createJob(namespace, job, options, signal)
        },
      })),
    }),
  },
  {
    name: "create something else than the intent holds",
    program: currentProgram({
      cluster: withVerbs((cluster) => ({
        createJob: (namespace, job, options, signal) => {
          if (options.dryRun || isIntentJob(job)) return cluster.createJob(namespace, job, options, signal)
          const { finalizers: _, ...metadata } = job.metadata ?? {}
          const { edit: __, ...labels } = metadata.labels ?? {}
          return cluster.createJob(namespace, { ...job, metadata: { ...metadata, labels } }, options, signal)
        },
      })),
    }),
  },
  {
    name: "create from an intent that nobody has read again",
    program: currentProgram({
      cluster: withVerbs((cluster) => {
        const read = new Map<string, operator.Job>()
        return {
          createJob: async (namespace, job, options, signal) => {
            const made = await cluster.createJob(namespace, job, options, signal)
            if (isIntentJob(job)) read.set(made.metadata?.name ?? "", made)
            return made
          },
          getJob: async (namespace, name, signal) => read.get(name) ?? cluster.getJob(namespace, name, signal),
        }
      }),
    }),
    actions: ["cancel", "node", "slow"],
  },
  {
    name: "see no pods",
    program: currentProgram({
      cluster: withVerbs(() => ({ listPods: async () => ({ items: [], resourceVersion: "1" }) })),
      operator: ({ cache }) => {
        cache.podsOf = () => []
      },
    }),
    actions: ["delete"],
  },
  { name: "act in a dry run", program: currentProgram({ config: { dryRun: false } }), actions: ["start"] },
  {
    name: "never take up what was left",
    program: currentProgram({
      operator: ({ cache }) => {
        cache.addIntent = () => {}
      },
    }),
  },
  {
    name: "leave a restart that was begun until its Job is due",
    program: currentProgram({
      operator: ({ reconciler }) => {
        Object.assign(reconciler, { actOnIntentAt: () => undefined })
      },
    }),
    // After the delete was rejected, the server's clock is set back, and the due time lies an hour ahead.
    history: {
      flavour: { ...PLAIN, jobs: [{ ...PLAIN_JOB, ttlSeconds: 250 }], delayMs: 200_000 },
      events: [
        {
          at: { on: "proof", nth: 0, after: true },
          action: { do: "admission", rule: "reject deletes of Jobs", ms: 600_000 },
        },
        { at: { on: "deleteJob", nth: 0, after: true }, action: { do: "clock", whose: "server", byMs: -3_600_000 } },
      ],
    },
  },
  {
    name: "forget what a restart has read",
    program: currentProgram({
      operator: ({ cache }) => {
        cache.latest = () => undefined
      },
    }),
    actions: ["edit", "delete", "node"],
  },
  {
    name: "take up an intent that was removed by a late watch",
    program: currentProgram({
      operator: ({ cache }) => {
        cache.removeIntent = () => {}
      },
    }),
  },
]

function isCaught(run: () => void): boolean {
  try {
    run()
    return false
  } catch (error) {
    if (!(error instanceof Violation)) throw error
    return true
  }
}

describe.each([
  ["rule", RULE_MUTANTS],
  ["effect", EFFECT_MUTANTS],
] as const)("the simulation catches a wrong %s:", (_, mutants) => {
  for (const { name, program, actions, history, seed = 1 } of mutants)
    test(name, () => {
      if (history) {
        expect(SEEDS.some((seed) => isCaught(() => simulate({ ...history, seed }, { program })))).toBe(true)
        // The right program passes it.
        for (const seed of SEEDS) simulate({ ...history, seed })
        return
      }
      const found = search(WITHIN, seed, { program, endOnFailure: true, ...(actions && { actions }) })
      if (!found) throw new Error(`not caught within ${WITHIN} histories`)
      // The right program passes it.
      simulate(found.history)
      console.log(`${name}: history ${found.runs}: ${found.message.split("\n")[0]?.slice(0, 120)}`)
    }, 120_000)
})
