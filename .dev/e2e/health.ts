// Health, notifications and alerts on the cluster: what the operator tells of itself is what happened; and what Git
// tools meet, tried with kubectl in their place. promtool comes from cluster/packages.sh.
import { readFile, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { parse } from "../test/metrics_kit.ts"
import { clusterDir, killPart, startPart } from "./generations.ts"
import {
  type Check,
  failedAt,
  failingJob,
  group,
  type Namespace,
  need,
  type Operator,
  prefix,
  Skip,
  seconds,
  type Thing,
  until,
  work,
} from "./kit.ts"
import { kubectl, kubectlProgram, tryCommand } from "./programs.ts"

const labels = { e2e: "yes" }
const chosen = { JOB_SELECTOR: "e2e=yes" }
const root = join(import.meta.dir, "../..")

/** A port that is free now. */
export function freePort(): number {
  const server = Bun.serve({ port: 0, hostname: "::", fetch: () => new Response() })
  const { port } = server
  server.stop(true)
  return port!
}
const get = (port: number, path: string) => fetch(`http://127.0.0.1:${port}/${path}`)
const answer = async (port: number, path: string) => {
  const response = await get(port, path)
  return `${response.status} ${(await response.text()).trim()}`
}

async function promtool(...args: [...string[], { input?: string }]): Promise<string> {
  const { input = "" } = args.pop() as { input?: string }
  if (!Bun.which("promtool")) throw new Skip("there is no promtool: .dev/cluster/packages.sh")
  const { code, out, err } = await tryCommand(["promtool", ...(args as string[])], input)
  need(code === 0, `promtool ${args.join(" ")}: exit code ${code}: ${out} ${err}`)
  return `${out}${err}`
}

// ---------------------------------------------------------------- what it tells is what happened

/** Receives notifications. */
function phone(): { url: string; messages: string[]; stop: () => void } {
  const messages: string[] = []
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: async (request) => {
      messages.push(((await request.json()) as { message: string }).message)
      return new Response()
    },
  })
  return { url: `http://127.0.0.1:${server.port}/topic`, messages, stop: () => void server.stop(true) }
}

const told = () =>
  group("health", async (ns, check) => {
    const port = freePort()
    const { url, messages, stop } = phone()
    const failures = new Map<string, string>()
    await ns.watch("jobs", (_, job) => {
      if (failedAt(job) !== undefined) failures.set(job.metadata.uid, job.metadata.name)
    })
    const settings = { RESTART_DELAY: "2s", RESTART_RULES: "exit:4=never", HEALTH_PORT: String(port), NOTIFY_URL: url }
    const operator = await ns.operator({ ...chosen, ...settings })
    await ns.create("jobs", failingJob({ name: "again", labels }))
    await ns.create("jobs", failingJob({ name: "never", labels, exitCode: 4 }))
    await check("NOTIFY_URL: a Job that is given up is told, and so is that it is back", async () => {
      await until("given up is told", () => messages.some((text) => /\/never\] given up: rule exit:4=never/.test(text)))
      await ns.patch("jobs", "never", { metadata: { annotations: { [`${prefix}restart-now`]: "1" } } })
      await until("back is told", () =>
        messages.some((text) => /^back after an alarm: .*\/never\] restarted/.test(text)),
      )
      need(!messages.some((text) => text.includes("/again")), messages.join("\n"))
      return messages.map((text) => text.slice(0, 60)).join(" | ")
    })
    await check("failures and restarts in /metrics are those that happened", () =>
      counted(ns, operator, port, failures),
    )
    await check("promtool finds the live /metrics clean", async () => {
      const text = await (await get(port, "metrics")).text()
      const said = await promtool("check", "metrics", { input: text })
      need(said === "", said)
      return `${text.split("\n").length} lines`
    })
    stop()
  })

async function counted(
  ns: Namespace,
  operator: Operator,
  port: number,
  failures: Map<string, string>,
): Promise<string> {
  await until("three restarts", () => operator.saying("/again", "restarted in").length >= 3, 90_000)
  await ns.patch("jobs", "again", { metadata: { annotations: { [`${prefix}paused`]: "true" } } })
  await until("it is paused", () => operator.saying("/again", "paused is true").length > 0)
  const sum = async (name: string, job: string) =>
    parse(await (await get(port, "metrics")).text())
      .filter((s) => s.name === `flickr_operator_${name}` && s.labels.includes(`job_name="${job}"`))
      .reduce((total, { value }) => total + value, 0)
  const figures: string[] = []
  for (const job of ["again", "never"]) {
    const failed = [...failures.values()].filter((name) => name === job).length
    const restarted = operator.saying(`/${job}]`, "restarted in").length
    const counted = await sum("failures_total", job)
    const done = await sum("restarts_total", job)
    figures.push(`${job}: ${counted} failures of ${failed}, ${done} restarts of ${restarted}`)
  }
  need(!figures.some((text) => /(\d+) \w+ of (?!\1\b)/.test(text)), figures.join("; "))
  return figures.join("; ")
}

const rules = () =>
  group("health: alerts", async (_, check) => {
    const folder = work
    await check(
      "promtool: each alert of deploy/monitoring/alerts.yaml fires when it should, and only then",
      async () => {
        const documents = Bun.YAML.parse(await readFile(join(root, "deploy/monitoring/alerts.yaml"), "utf8")) as {
          kind: string
          spec: { groups: Group[] }
        }[]
        const { spec } = documents.find(({ kind }) => kind === "PrometheusRule")!
        await writeFile(join(folder, "rules.yaml"), JSON.stringify(spec))
        const tests = await readFile(join(root, ".dev/test/alerts_test.yaml"), "utf8")
        await writeFile(join(folder, "alerts_test.yaml"), tests)
        await promtool("check", "rules", join(folder, "rules.yaml"), {})
        await promtool("test", "rules", join(folder, "alerts_test.yaml"), {})
        const alerts = spec.groups.flatMap((group) => group.rules.map(({ alert }) => alert))
        const untested = alerts.filter(
          (alert) => !new RegExp(`alertname: ${alert}\\n[^-]*eval_time.*\\n *exp_alerts:\\n`).test(tests),
        )
        need(untested.length === 0, `not seen to fire: ${untested.join(", ")}`)
        return alerts.join(", ")
      },
    )
    await check("promtool: each query of deploy/monitoring/dashboard.json can be read", async () => {
      const text = await readFile(join(root, "deploy/monitoring/dashboard.json"), "utf8")
      const { panels } = JSON.parse(text) as { panels: { targets: { expr: string }[] }[] }
      const queries = panels.flatMap(({ targets }) =>
        targets.map(({ expr }) => expr.replaceAll("$__rate_interval", "5m").replaceAll("$namespace", ".*")),
      )
      const group = { name: "dashboard", rules: queries.map((expr, i) => ({ record: `query:${i}`, expr })) }
      await writeFile(join(folder, "dashboard.yaml"), JSON.stringify({ groups: [group] }))
      await promtool("check", "rules", join(folder, "dashboard.yaml"), {})
      return `${queries.length} queries`
    })
  })
type Group = { rules: { alert: string }[] }

// ---------------------------------------------------------------- what Git tools meet

/** Flux and Argo CD apply on the server, each as a field manager of its own; kubectl does the same here. */
const gitTools = () =>
  group("git", async (ns, check) => {
    const manifest = failingJob({ name: "from-git", labels })
    const apply = (job: object, ...args: string[]) =>
      tryCommand(
        [kubectlProgram, "-n", ns.name, "apply", "--server-side", "--field-manager=git", ...args, "-f", "-"],
        JSON.stringify(job),
      )
    const applied = await apply(manifest)
    need(applied.code === 0, applied.err)
    const old = await ns.failed("from-git")
    const operator = await ns.operator({ ...chosen, RESTART_DELAY: "0" })
    const young = await ns.another(old)
    await ns.noIntent()
    await operator.stop()
    await serverSide(ns, check, manifest, young, apply)
    await check("a Job that is removed from Git, and so deleted, while it waits is not restarted", async () => {
      await ns.create("jobs", failingJob({ name: "removed", labels }))
      const failed = await ns.failed("removed")
      const waiting = await ns.operator({ ...chosen, RESTART_DELAY: "8s" })
      await waiting.says("that it waits", ["/removed]", "will be restarted at"])
      await kubectl("-n", ns.name, "delete", "job", "removed")
      const line = await waiting.says("that it is gone", ["/removed]", "was deleted by someone"])
      await Bun.sleep(Math.max(0, failedAt(failed)! + 12_000 - Date.now()))
      need((await ns.job("removed")) === undefined && (await ns.intents()).length === 0, "it is back")
      return line.slice(line.indexOf("["))
    })
  })

async function serverSide(
  ns: Namespace,
  check: Check,
  manifest: ReturnType<typeof failingJob>,
  young: Thing,
  apply: (job: object, ...args: string[]) => ReturnType<typeof tryCommand>,
): Promise<void> {
  await check(
    "after a restart, server-side apply of the same manifest is no conflict, and changes no uid",
    async () => {
      const { code, err } = await apply(manifest)
      need(code === 0, err)
      need((await ns.job("from-git"))?.metadata.uid === young.metadata.uid, "another Job")
    },
  )
  const changed = {
    ...manifest,
    metadata: { ...manifest.metadata, labels: { ...labels, e2e: "yes", tier: "new" } },
    spec: { ...(manifest.spec as object), backoffLimit: 1 },
  }
  await check("a change is a conflict with us, until it is forced", async () => {
    const { code, err } = await apply(changed)
    need(
      code !== 0 && /conflict/.test(err) && err.includes("flickr-immich-k8s-sync-operator"),
      `exit code ${code}: ${err}`,
    )
    const forced = await apply(changed, "--force-conflicts")
    need(forced.code === 0, forced.err)
    const { metadata, spec } = (await ns.job("from-git"))!
    need(metadata.labels?.tier === "new" && spec?.backoffLimit === 1, JSON.stringify(metadata.labels))
    return err.split("\n")[0]
  })
}

// ---------------------------------------------------------------- an API server that is away

/** Kills the API server: nothing else may run meanwhile. */
export const outage = () =>
  group("health: outage", async (ns, check) => {
    const port = freePort()
    const operator = await ns.operator({ ...chosen, CHECK_INTERVAL: "5", HEALTH_PORT: String(port) })
    await until("it is ready", async () => (await answer(port, "readyz").catch(() => "")) === "200 ok")
    await check(
      "readyz turns false when the API server is killed, livez does not; both are true when it is back",
      async () => {
        if (!clusterDir) throw new Skip("E2E_CLUSTER_DIR is not set")
        await killPart("kube-apiserver")
        const killedAt = performance.now()
        let said = ""
        try {
          said = await until(
            "it is not ready",
            () => answer(port, "readyz").then((text) => text.startsWith("503 ") && text),
            90_000,
          )
          need((await answer(port, "livez")) === "200 ok", "it is not alive")
        } finally {
          await startPart("kube-apiserver")
          // After so long it would look for the API server again only now and then.
          await killPart("kube-controller-manager")
          await startPart("kube-controller-manager")
        }
        const backAt = performance.now()
        const away = backAt - killedAt
        await until("it is ready again", async () => (await answer(port, "readyz")) === "200 ok", 90_000)
        need(operator.running, "it has ended")
        const ready = seconds(performance.now() - backAt)
        return `not ready after ${seconds(away)}: ${said}; ready ${ready} after the API server`
      },
    )
  })

export const healthGroups = () => [told(), rules(), gitTools()]
