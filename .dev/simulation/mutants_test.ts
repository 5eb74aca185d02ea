// Mutants of the operator, each broken at one place of the protocol: the simulation must catch every one.
import { afterAll, describe, expect, test } from "bun:test"
import { mkdirSync, readFileSync, rmSync } from "node:fs"
import { join } from "node:path"
import { type Deed, type History, type Program, search, simulate, Violation } from "./simulation.ts"

/** Each mutant is caught within so many random histories, or by its own history with one of these numbers of luck. */
const WITHIN = 3_000
const LUCK = Array.from({ length: 20 }, (_, i) => i)

function caught(run: () => void): boolean {
  try {
    run()
    return false
  } catch (error) {
    if (!(error instanceof Violation)) throw error
    return true
  }
}

/** Each breaks the protocol at one place: its name, the exact text, what stands there instead, and the deeds that bring it to light. */
type Mutation = { name: string; from: string; to: string; deeds?: Deed["do"][]; history?: Omit<History, "luck"> }
const PRECONDITIONS = '{ uid: jobUid, resourceVersion: jobVersion, propagationPolicy: "Foreground" }'
const FOREGROUND = '{ propagationPolicy: "Foreground" } as DeleteOptions'
const MUTATIONS: Mutation[] = [
  {
    name: "skip the intent",
    from: 'const made = readIntent(await cluster.createJob(live.metadata?.namespace ?? "", intentFor(live, plan), kill))',
    to: 'const made = readIntent({ ...intentFor(live, plan), metadata: { ...intentFor(live, plan).metadata, uid: "none" } })',
  },
  {
    name: "discard an intent whose Job is terminating",
    from: 'if (deletionTimestamp) return isEdited(live, intent.original) ? "rewrite" : "await absence"',
    to: "",
  },
  { name: "drop uid and version from the delete", from: PRECONDITIONS, to: FOREGROUND },
  {
    name: "drop the version from the delete",
    from: PRECONDITIONS,
    to: '{ uid: jobUid, propagationPolicy: "Foreground" }',
  },
  {
    name: "go by the oldest intent",
    from: ".sort((a, b) => compareVersions(a.jobVersion, b.jobVersion))",
    to: ".sort((a, b) => compareVersions(b.jobVersion, a.jobVersion))",
    deeds: ["edit", "node", "crash"],
  },
  {
    name: "overlook edits of the terminating Job",
    from: "return !Bun.deepEquals(userPart(a), userPart(b))",
    to: "return a === b",
    deeds: ["edit", "node", "slow"],
  },
  {
    name: "skip the pods' absence",
    from: "if (inTheWay.length > 0) return",
    to: "if (inTheWay.length > 99) return",
    deeds: ["delete"],
  },
  {
    name: "create without a look at the pods",
    from: 'if (step === "create") {',
    to: 'if (step === "create" && world.config.dryRun) {',
    deeds: ["delete"],
  },
  {
    name: "finish while the edited Job stands",
    from: '? "delete" : "discard"',
    to: '? "delete" : "finish"',
    deeds: ["edit", "start"],
  },
  {
    name: "forget on SIGTERM",
    from: '  return { result: "interrupted" }\n}',
    to: '  if (known) await removeIntents({ ...world, kill: AbortSignal.any([]) }, [known])\n  return { result: "interrupted" }\n}',
    deeds: ["term", "node", "slow"],
  },
  {
    name: "repeat a refused delete without preconditions",
    from: 'await sendDelete(world, intent).catch((error) => exceptFor(error, "Conflict", "NotFound"))',
    to: `await sendDelete(world, intent).catch(() => world.cluster.deleteJob(intent.namespace, intent.jobName, ${FOREGROUND}, world.kill)).catch(() => {})`,
    deeds: ["edit", "lose", "start", "recreate"],
  },
  {
    name: "read the Job before its intents",
    from: `  const before = known ?? newest(await listIntents(world, namespace, name))
  const live = await world.cluster.getJob(namespace, name, world.kill)`,
    to: `  const live = await world.cluster.getJob(namespace, name, world.kill)
  const before = known ?? newest(await listIntents(world, namespace, name))`,
    // The other operator restarts the Job twice between the two reads. By chance it takes some 10,000 histories to come to this.
    history: {
      flavour: {
        jobs: [
          { ends: ["fail", "fail", "fail", "fail"], restartPolicy: "Never", ttl: false, manual: false, holdMs: 2_000 },
        ],
        ...{ delayMs: 0, bySelector: false, oldRole: false, gcMs: 15 },
      },
      events: [
        { at: { ms: 0 }, deed: { do: "start", dryRun: false } },
        { at: { on: "listIntents", nth: 0, after: false }, deed: { do: "slow", ms: 8_000 } },
        { at: { on: "listIntents", nth: 0, after: false }, deed: { do: "start", dryRun: false } },
      ],
    },
  },
  {
    name: "take absence for a person's delete",
    from: '? "await due time" : "create"',
    to: '? "await due time" : "discard"',
  },
  {
    name: "go by any uid that was seen, however old",
    from: "seen !== undefined && isSeenAfter(seen, intent) && viewJob(seen).uid !== intent.jobUid",
    to: "seen !== undefined",
  },
  {
    name: "create without a fresh look at the intents",
    from: "const intents = await listIntents(world, namespace, name)\n",
    to: "const intents = [before]\n",
    deeds: ["cancel", "node", "slow"],
  },
  {
    name: "remove the intent before the create",
    from: "const created = await world.cluster.createJob(",
    to: "await removeIntents(world, intents)\n    const created = await world.cluster.createJob(",
  },
  {
    name: "leave the intents",
    from: "next = () => removeIntents(world, round.left).then(() => round.outcome)",
    to: "return round.outcome",
  },
  {
    name: "delete in the background",
    from: 'propagationPolicy: "Foreground" },\n',
    to: 'propagationPolicy: "Background" },\n',
  },
  {
    name: "delete though the intent was refused",
    from: 'if (intent instanceof ApiError) return { result: "refused", error: intent }\n  // Only',
    to: 'if (intent instanceof ApiError) await world.cluster.deleteJob(job.namespace, job.name, { uid: job.uid, propagationPolicy: "Foreground" }, world.kill)\n  // Only',
  },
  {
    name: "decide without a fresh look",
    from: 'if (decision.do !== "restart") return { result: decision.do === "wait" ? "early" : "changed" }',
    to: "",
  },
  {
    name: "never take up what was left",
    from: "if (config.dryRun || deleting || this.restarting.has(key)",
    to: "if (config.dryRun || key",
  },
  {
    name: "lose a finalizer with an edit",
    from: "{ ...edited, metadata: { ...edited.metadata, finalizers } }",
    to: "edited",
    // The edit comes between two looks, right before the finalizer and the Job go.
    history: {
      flavour: {
        jobs: [{ ends: ["fail", "fail"], restartPolicy: "Never", ttl: false, manual: false, holdMs: 2_000 }],
        ...{ delayMs: 0, bySelector: false, oldRole: false, gcMs: 2_000 },
      },
      events: [
        { at: { on: "deleteJob", nth: 0, after: true }, deed: { do: "break", name: "b" } },
        { at: { ms: 1_950 }, deed: { do: "edit", name: "a", what: "label" } },
      ],
    },
  },
  {
    name: "forget what a restart has read",
    from: "if (read && isNewer(read, known)) this.see(",
    to: "if (read && !known) this.see(",
    deeds: ["edit", "delete"],
  },
  {
    name: "follow only what is selected",
    from: " && !this.isIntended(view)) return",
    to: ") return",
    // A Job is deselected while it is being deleted; the next life sees that in its list, and nowhere else.
    history: {
      flavour: {
        jobs: [{ ends: ["fail", "fail"], restartPolicy: "Never", ttl: false, manual: false, holdMs: 0 }],
        ...{ delayMs: 0, bySelector: true, oldRole: false, gcMs: 2_000 },
      },
      events: [
        { at: { on: "deleteJob", nth: 0, after: true }, deed: { do: "edit", name: "a", what: "deselect" } },
        { at: { on: "same", nth: 0, after: true }, deed: { do: "crash", ms: 1_000 } },
        { at: { on: "getJob", nth: 0, after: false }, deed: { do: "slow", ms: 10_000 } },
      ],
    },
  },
  {
    name: "forget the last edit of a Job that is gone",
    from: "const lastSeen = this.lastSeen(key, this.gone.get(uid))",
    to: "const lastSeen = this.lastSeen(key)",
    // An intent arrives 40 s after it was sent, when the Job has been edited and deleted; half of all do, by luck.
    history: {
      flavour: {
        jobs: [{ ends: ["fail", "fail"], restartPolicy: "Never", ttl: false, manual: false, holdMs: 0 }],
        ...{ delayMs: 0, bySelector: false, oldRole: false, gcMs: 15 },
      },
      events: [
        { at: { on: "createIntent", nth: 0, after: false }, deed: { do: "slow", ms: 40_000 } },
        { at: { ms: 2_000 }, deed: { do: "edit", name: "a", what: "label" } },
        { at: { ms: 2_000 }, deed: { do: "delete", name: "a", policy: "Background" } },
      ],
    },
  },
  {
    name: "take a late answer for a Job that is gone",
    from: '?.job ?? this.gone.get(read?.metadata?.uid ?? "")',
    to: "?.job",
    // A watch that was deaf tells all at once; the look at a Job without pods was answered before the Job's last moment, and arrives after it.
    history: {
      flavour: {
        jobs: [{ ends: ["fail", "fail", "fail"], restartPolicy: "Never", ttl: false, manual: false, holdMs: 0 }],
        ...{ delayMs: 200_000, bySelector: false, oldRole: false, gcMs: 2_000 },
      },
      events: [
        { at: { ms: 200_000 }, deed: { do: "deafen" } },
        { at: { on: "watch", nth: 0, after: false }, deed: { do: "start", dryRun: false } },
        { at: { on: "getJob", nth: 0, after: true }, deed: { do: "delete", name: "a", policy: "Background" } },
        { at: { ms: 0 }, deed: { do: "slow", ms: 50 } },
        { at: { on: "same", nth: 0, after: false }, deed: { do: "refuse", why: "quota", ms: 1_000 } },
        { at: { on: "getJob", nth: 0, after: false }, deed: { do: "twice", ms: 1 } },
      ],
    },
  },
  {
    name: "let a late watch overwrite what was read",
    from: 'if (isOlder && type !== "LISTED") return',
    to: 'if (known?.view.uid !== view.uid && isOlder && type !== "LISTED") return',
    // The watch is 40 s late; while the API server is away the TTL takes the Job, which was last read as failed, and heard of as running.
    history: {
      flavour: {
        jobs: [
          { ends: ["fail", "succeed", "fail", "fail"], restartPolicy: "Never", ttl: true, manual: false, holdMs: 0 },
          { ends: ["fail", "fail", "fail"], restartPolicy: "Never", ttl: false, manual: false, holdMs: 0 },
        ],
        ...{ delayMs: 0, bySelector: false, oldRole: false, gcMs: 15 },
      },
      events: [
        { at: { on: "getJob", nth: 0, after: false }, deed: { do: "lag", ms: 40_000 } },
        { at: { on: "log", nth: 0, after: false }, deed: { do: "expire" } },
        { at: { on: "getJob", nth: 0, after: false }, deed: { do: "recreate", name: "a" } },
        { at: { on: "createIntent", nth: 1, after: false }, deed: { do: "edit", name: "a", what: "label" } },
        { at: { ms: 2_000 }, deed: { do: "outage", ms: 120_000 } },
        { at: { ms: 0 }, deed: { do: "slow", ms: 50 } },
        { at: { on: "getJob", nth: 0, after: false }, deed: { do: "delete", name: "a", policy: "Background" } },
        { at: { ms: 0 }, deed: { do: "edit", name: "a", what: "label" } },
      ],
    },
  },
  { name: "act in a dry run", from: "if (!config.dryRun) this.begin(", to: "this.begin(", deeds: ["start"] },
  {
    name: "pace by a clock that jumps",
    from: "waitedMs += pauseMs",
    to: "waitedMs += clock.now() - (clock.now() - 1)",
    deeds: ["node", "clock"],
  },
]
const folder = join(import.meta.dir, "../../node_modules/.cache/mutants")
const source = readFileSync(join(import.meta.dir, "../../operator.ts"), "utf8")
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function mutant(index: number): Promise<Program> {
  const { from, to } = MUTATIONS[index]!
  if (source.split(from).length !== 2)
    throw new Error(`${from} stands ${source.split(from).length - 1} times in operator.ts: mend the mutation`)
  mkdirSync(folder, { recursive: true })
  const file = join(folder, `${index}.ts`)
  await Bun.write(file, source.replace(from, () => to).replace("./package.json", "../../../package.json"))
  return (await import(file)) as Program
}

describe("the simulation catches a program that would", () => {
  for (const [index, { name, deeds, history }] of MUTATIONS.entries())
    test(name, async () => {
      const program = await mutant(index)
      if (history) {
        const isCaught = (luck: number) => caught(() => simulate({ ...history, luck }, { program }))
        expect(LUCK.some(isCaught)).toBe(true)
        for (const luck of LUCK) simulate({ ...history, luck })
        return
      }
      const found = search(WITHIN, 1, { program, endOnFailure: true, ...(deeds && { deeds }) })
      if (!found) throw new Error(`not caught within ${WITHIN} histories`)
      console.log(`${name}: history ${found.runs}: ${found.message.split("\n")[0]?.slice(0, 120)}`)
    }, 120_000)
})
