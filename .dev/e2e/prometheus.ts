// A real Prometheus and a real Alertmanager beside the operator: what the dashboard shows of one failure, and that
// every alert of deploy/monitoring/alerts.yaml fires and resolves. Both programs come from cluster/packages.sh. So that
// this takes a minute, the rules are copied with `for: 1s` in place of minutes, and with 5 s in place of the 900 s of
// an overdue restart.
import { readFile } from "node:fs/promises"
import { join } from "node:path"
import { freePort } from "./health.ts"
import {
  failingJob,
  group,
  jobThat,
  must,
  type Namespace,
  need,
  type Operator,
  runningJob,
  Skip,
  seconds,
  until,
  work,
} from "./kit.ts"

const labels = { e2e: "yes" }
const root = join(import.meta.dir, "../..")
const programs = ["prometheus", "prometheus-alertmanager"] as const

type Alert = { status: "firing" | "resolved"; labels: Record<string, string>; annotations: Record<string, string> }

/** Takes what Alertmanager posts. */
function receiver() {
  const alerts: Alert[] = []
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: async (request) => {
      alerts.push(...((await request.json()) as { alerts: Alert[] }).alerts)
      return new Response()
    },
  })
  return { alerts, url: `http://127.0.0.1:${server.port}/`, stop: () => void server.stop(true) }
}

/** The rules of deploy/monitoring/alerts.yaml, faster. */
async function quickRules(): Promise<string> {
  const text = await readFile(join(root, "deploy/monitoring/alerts.yaml"), "utf8")
  const documents = Bun.YAML.parse(text) as { kind: string; spec: { groups: object[] } }[]
  const { spec } = documents.find(({ kind }) => kind === "PrometheusRule")!
  return JSON.stringify(spec)
    .replaceAll(/"for":"\d+m"/g, '"for":"1s"')
    .replaceAll("> 900", "> 5")
}

/** Starts both programs; they end with the namespace. */
async function startBoth(ns: Namespace, operatorPort: number, webhook: string): Promise<number> {
  for (const program of programs) if (!Bun.which(program)) throw new Skip(`no ${program}: .dev/cluster/packages.sh`)
  const folder = join(work, ns.name)
  const ports = { prometheus: freePort(), alertmanager: freePort() }
  const write = (name: string, content: string) => Bun.write(join(folder, name), content)
  await write("rules.yaml", await quickRules())
  const route = { receiver: "e2e", group_by: ["..."], group_wait: "0s", group_interval: "1s", repeat_interval: "1h" }
  const receivers = [{ name: "e2e", webhook_configs: [{ url: webhook, send_resolved: true }] }]
  await write("alertmanager.yaml", JSON.stringify({ route, receivers }))
  const targets = (port: number) => [{ targets: [`127.0.0.1:${port}`] }]
  const config = {
    global: { scrape_interval: "1s", scrape_timeout: "1s", evaluation_interval: "1s" },
    rule_files: [join(folder, "rules.yaml")],
    scrape_configs: [{ job_name: "operator", honor_labels: true, static_configs: targets(operatorPort) }],
    alerting: { alertmanagers: [{ static_configs: targets(ports.alertmanager) }] },
  }
  await write("prometheus.yaml", JSON.stringify(config))
  const start = (...command: string[]) => {
    const log = Bun.file(join(folder, `${command[0]}.log`))
    const child = Bun.spawn(command, { stdin: "ignore", stdout: log, stderr: log })
    ns.tidyUps.push(async () => {
      child.kill()
      await child.exited
    })
  }
  start(
    "prometheus-alertmanager",
    `--config.file=${folder}/alertmanager.yaml`,
    `--storage.path=${folder}/alertmanager`,
    `--web.listen-address=127.0.0.1:${ports.alertmanager}`,
    "--cluster.listen-address=",
  )
  start(
    "prometheus",
    `--config.file=${folder}/prometheus.yaml`,
    `--storage.tsdb.path=${folder}/prometheus`,
    `--web.listen-address=127.0.0.1:${ports.prometheus}`,
  )
  await until("Alertmanager is ready", () => isReady(ports.alertmanager), 60_000)
  await until("Prometheus is ready", () => isReady(ports.prometheus), 60_000)
  await until("Prometheus scrapes the operator", async () => (await query(ports.prometheus, "up"))[0] === "1")
  return ports.prometheus
}

async function isReady(port: number): Promise<boolean> {
  const response = await fetch(`http://127.0.0.1:${port}/-/ready`).catch(() => undefined)
  return response?.ok === true
}

/** The values that Prometheus answers with. */
async function query(port: number, expression: string): Promise<string[]> {
  const url = `http://127.0.0.1:${port}/api/v1/query?query=${encodeURIComponent(expression)}`
  const response = await fetch(url)
  need(response.ok, `Prometheus answers ${response.status}: ${await response.clone().text()}`)
  const { data } = (await response.json()) as { data: { result: { value: [number, string] }[] } }
  return data.result.map(({ value: [, text] }) => text)
}

/** What a panel of the dashboard asks for, in one namespace. */
async function panel(title: string, namespace: string): Promise<string> {
  type Panel = { title: string; targets: { expr: string }[] }
  const text = await readFile(join(root, "deploy/monitoring/dashboard.json"), "utf8")
  const found = (JSON.parse(text) as { panels: Panel[] }).panels.find((one) => one.title === title)
  need(found?.targets[0], `the dashboard has no panel ${title}`)
  return found.targets[0].expr.replaceAll("$namespace", namespace)
}

const LAST_DAY = "Failures of the last day, by Job"

type Trouble = { alert: string; job: string | undefined; make: () => Promise<unknown>; mend: () => Promise<unknown> }

/** What lets each alert fire, and what resolves it. */
function troubles(ns: Namespace, operator: Operator, startAnother: () => Promise<Operator>): Trouble[] {
  const heldJob = failingJob({ name: "held", labels, exitCode: 5 })
  const remove = (resource: string, name: string) =>
    must("DELETE", ns.path(resource, name), { propagationPolicy: "Background" })
  return [
    {
      alert: "FlickrOperatorJobGivenUp",
      job: "never",
      make: () => ns.create("jobs", failingJob({ name: "never", labels, exitCode: 4 })),
      mend: () => remove("jobs", "never"),
    },
    {
      alert: "FlickrOperatorRestartOverdue",
      job: "held",
      make: async () => ns.hold("jobs", await ns.create("jobs", heldJob)),
      mend: async () => ns.release("jobs", (await ns.job("held"))!),
    },
    {
      alert: "FlickrOperatorRestartRejected",
      job: "full",
      make: async () => {
        await ns.create("jobs", jobThat("sleep 2; exit 5", { name: "full", labels }))
        const hard = { "count/jobs.batch": "1" }
        await ns.create("resourcequotas", { metadata: { name: "full" }, spec: { hard } })
      },
      mend: () => remove("resourcequotas", "full"),
    },
    {
      alert: "FlickrOperatorBlind",
      job: undefined,
      make: () => operator.stop("SIGKILL"),
      mend: startAnother,
    },
  ]
}

export const prometheusGroup = () =>
  group("prometheus", async (ns, check) => {
    const port = freePort()
    const { alerts, url, stop } = receiver()
    ns.tidyUps.push(stop)
    const settings = {
      JOB_SELECTOR: "e2e=yes",
      RESTART_RULES: "exit:3=1d, exit:4=never, exit:5=1s",
      HEALTH_PORT: String(port),
    }
    const start = () => ns.operator(settings)
    const operator = await start()
    await ns.create("jobs", runningJob({ name: "quiet", labels }))
    const prometheus = await startBoth(ns, port, url)
    await check("one failure shows as 1 in the panel of the last day, and a Job without one as 0", async () => {
      const expression = await panel(LAST_DAY, ns.name)
      await ns.create("jobs", jobThat("sleep 5; exit 3", { name: "once", labels }))
      await ns.failed("once")
      const shown = async () => (await query(prometheus, `sort_desc(${expression})`)).join()
      return until("the panel shows 1 and 0", async () => (await shown()) === "1,0" && "once 1, quiet 0", 30_000)
    })
    for (const { alert, job, make, mend } of troubles(ns, operator, start))
      await check(`${alert} fires through Alertmanager, and resolves`, async () => {
        const is = (status: Alert["status"]) =>
          alerts.find((a) => a.status === status && a.labels.alertname === alert && a.labels.job_name === job)
        await make()
        const fired = await until(`${alert} fires`, () => is("firing"), 90_000)
        const firedAt = performance.now()
        await mend()
        await until(`${alert} resolves`, () => is("resolved"), 120_000)
        return `${fired.annotations.summary}; resolved after ${seconds(performance.now() - firedAt)}`
      })
    await check("no alert fires but those", async () => {
      const fired = new Set(alerts.filter(({ status }) => status === "firing").map((a) => a.labels.alertname))
      need(fired.size === 4, [...fired].join())
    })
  })
