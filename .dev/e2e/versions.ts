// The operator beside version 1.0.0 and after it: a restart that one of them has begun is no trouble for the other.
import { symlink } from "node:fs/promises"
import { join } from "node:path"
import { $ } from "bun"
import { Generations } from "./generations.ts"
import {
  content,
  differences,
  failedAt,
  failingJob,
  group,
  idleJob,
  type Namespace,
  need,
  type Operator,
  prefix,
  root,
  Skip,
  seconds,
  type Thing,
  until,
  work,
} from "./kit.ts"

const commit = "515d6da" // 1.0.0
const labels = { e2e: "yes" }
const settings = { JOB_SELECTOR: "e2e=yes", RESTART_DELAY: "0", CHECK_INTERVAL: "5" }

let built: Promise<string> | undefined
/** The binary of version 1.0.0. */
const oldBinary = () => {
  built ??= build()
  return built
}
async function build(): Promise<string> {
  const folder = join(work, "1.0.0")
  await $`mkdir ${folder}`
  const { exitCode } = await $`git -C ${root} archive ${commit} | tar x -C ${folder}`.quiet().nothrow()
  if (exitCode !== 0) throw new Skip(`this clone has no commit ${commit}: fetch its history`)
  await symlink(join(root, "node_modules"), join(folder, "node_modules"))
  const outfile = join(folder, "operator")
  await $`${process.execPath} build --compile --outfile ${outfile} operator.ts`.cwd(folder).quiet()
  return outfile
}

/** A Job whose pod cannot go, and an operator that is killed as soon as it has deleted the Job. */
async function killedAfterDelete(ns: Namespace, program?: string): Promise<{ old: Thing; release(): Promise<void> }> {
  const job = await ns.create("jobs", idleJob({ name: "dl", labels, annotations: { note: "kept" } }))
  const [pod] = await until("it has a pod", async () => {
    const pods = await ns.podsOf(job)
    return pods.length > 0 && pods
  })
  await ns.hold("pods", pod!)
  await ns.failByHand(job)
  const old = await ns.failed("dl")
  let operator: Operator | undefined
  let isDeleted = false
  await ns.watch("jobs", (type, { metadata }) => {
    if (metadata.uid !== old.metadata.uid || !(metadata.deletionTimestamp || type === "DELETED")) return
    operator?.kill("SIGKILL")
    isDeleted = true
  })
  operator = await ns.operator(settings, "operator", program)
  await until("the operator has deleted the Job", () => isDeleted)
  await operator.ended()
  need((await ns.job("dl"))?.metadata.uid === old.metadata.uid, "the old Job is gone already")
  need((await ns.intents()).length === 1, "no intent stands")
  return { old, release: () => ns.release("pods", pod!) }
}

async function completes(ns: Namespace, old: Thing): Promise<string> {
  const begun = performance.now()
  const young = await ns.another(old)
  const changed = differences(content(old), content(young))
  need(changed.length === 0, `changed: ${changed.join("\n")}`)
  await ns.noIntent()
  return `after ${seconds(performance.now() - begun)}`
}

const completed = () =>
  group("versions: completed", async (ns, check) => {
    await check("1.0.0 is killed after its delete: this version completes the restart", async () => {
      const { old, release } = await killedAfterDelete(ns, await oldBinary())
      await ns.operator(settings)
      await release()
      return completes(ns, old)
    })
  })

const left = () =>
  group("versions: left alone", async (ns, check) => {
    await check("1.0.0 leaves an intent of this version standing, and says so", async () => {
      const program = await oldBinary()
      const { old, release } = await killedAfterDelete(ns)
      const [intent] = await ns.intents()
      const before = await ns.operator(settings, "operator", program)
      const line = await before.says("that it leaves the intent alone", [intent!.metadata.name, /WARNING|ERROR/])
      await release()
      await until("the old Job is gone", async () => (await ns.job("dl")) === undefined)
      // Longer than it takes 1.0.0 to look at everything again.
      await Bun.sleep(7_000)
      const still = await ns.find("jobs", intent!.metadata.name)
      need(still?.metadata.uid === intent!.metadata.uid && !still.metadata.deletionTimestamp, "the intent was removed")
      need((await ns.job("dl")) === undefined, "1.0.0 made a Job of it")
      await before.stop("SIGKILL")
      await ns.operator(settings)
      await completes(ns, old)
      return line
    })
  })

const together = () =>
  group("versions: together", async (ns, check) => {
    const names = Array.from({ length: 12 }, (_, i) => `job-${String(i).padStart(2, "0")}`)
    await check("1.0.0 and this version over 12 failing Jobs: none is lost, none runs twice", async () => {
      const program = await oldBinary()
      const seen = new Generations(ns)
      for (const name of names) await ns.create("jobs", failingJob({ name, labels }))
      const begun = performance.now()
      await ns.operator({ ...settings, MAX_RESTARTS: "2" }, "operator", program)
      await ns.operator({ ...settings, MAX_RESTARTS: "2" })
      const isOver = (name: string) => {
        const job = seen.live.get(name)
        return job?.metadata.annotations?.[`${prefix}restarts`] === "2" && failedAt(job) !== undefined
      }
      await until("each has been restarted twice, and has failed again", () => names.every(isOver), 180_000)
      await ns.noIntent(60_000)
      const runs = names.map((name) => seen.of.get(name)!.map(({ uid }) => seen.podsEver(uid)))
      for (const [i, pods] of runs.entries())
        need(Bun.deepEquals(pods, [1, 1, 1]), `${names[i]}: pods of its generations ${pods.join(", ")}`)
      need(seen.doubled.length === 0, seen.doubled.join("; "))
      seen.end()
      return `24 restarts in ${seconds(performance.now() - begun)}`
    })
  })

export const versionGroups = () => [completed(), left(), together()]
