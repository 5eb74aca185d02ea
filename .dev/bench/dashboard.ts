// What the dashboard costs where there is much: 1,000 Jobs, of which 20 have failed, and 10,000 records, on the
// embedded server. Prints, claims nothing: bun .dev/bench/dashboard.ts [BINARY]
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { availableParallelism, loadavg, tmpdir } from "node:os"
import { join } from "node:path"
import { chromium } from "playwright-core"
import { failedStatus, putRecord } from "../apiserver/history.ts"
import { startApiServer } from "../apiserver/http.ts"

const JOBS = 1_000
const FAILED = 20
const RECORDS_EACH = 10
const CHANGES = 200
const MINUTE = 60_000
const CHROMIUM = process.env.E2E_CHROMIUM || "/usr/bin/chromium"
const program = process.argv[2] ? [process.argv[2]] : [process.execPath, join(import.meta.dir, "../../operator.ts")]
const server = await startApiServer({ syncMs: 1e9, batchMs: 1e9, gcMs: 1e9 })
const folder = mkdtempSync(join(tmpdir(), "bench-"))

const put = (name: string, status: object) =>
  server.model.put({
    kind: "Job",
    metadata: { name, labels: { app: "load" } },
    spec: {
      suspend: true,
      template: { spec: { restartPolicy: "Never", containers: [{ name: "main", image: "busybox" }] } },
    },
    status,
  })
const nameOf = (i: number) => `job-${String(i).padStart(4, "0")}`
/** Jobs with a past of some days. */
function fill(jobs: number): void {
  for (let i = 0; i < jobs; i++) {
    const failedAt = Date.now() - MINUTE
    const job = put(nameOf(i), i < FAILED ? failedStatus(failedAt - 30 * MINUTE, failedAt) : {})
    for (let n = 0; n < RECORDS_EACH; n++) {
      const log = Array.from({ length: 20 }, (_, line) => `a line of a log, number ${line}`)
      const at = failedAt - n * 60 * MINUTE
      const isLast = n === 0 && i < FAILED
      const past = { startedAt: at - 30 * MINUTE, failedAt: at, cause: "exit:3" as const, log }
      putRecord(server.model, "default", nameOf(i), past, isLast ? job.metadata.uid : undefined)
    }
  }
}

const memoryOf = (pid: number, key: string) =>
  Number(new RegExp(`^${key}:\\s+(\\d+)`, "m").exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024
const mebibytes = (pid: number) => {
  const [whole, anonymous] = ["VmRSS", "RssAnon"].map((key) => memoryOf(pid, key).toFixed(0))
  return `${whole} MiB resident, ${anonymous} of them anonymous`
}

/** Starts the dashboard, and measures until its address is printed. */
async function start() {
  const began = performance.now()
  const child = Bun.spawn([...program, "dashboard", "--no-open"], {
    env: {
      PATH: process.env.PATH ?? "",
      HOME: folder,
      KUBECONFIG: server.writeKubeconfig(folder),
      JOB_SELECTOR: "app=load",
      NAMESPACE: "default",
    },
    stdout: "pipe",
    stderr: "ignore",
  })
  const { value } = await child.stdout.getReader().read()
  const address = new URL(new TextDecoder().decode(value).trim().split(" ").at(-1) ?? "")
  return { child, address, tookMs: performance.now() - began }
}

/** Reads events until one satisfies; returns how long it took and how many bytes came. */
async function readEvents(address: URL, isIt: (text: string) => boolean) {
  const cookie = (await fetch(address)).headers.get("set-cookie")?.split(";")[0] ?? ""
  const began = performance.now()
  const reader = (await fetch(`${address.origin}/events`, { headers: { cookie } })).body!.getReader()
  const decoder = new TextDecoder()
  const wait = async (isIt: (text: string) => boolean) => {
    let bytes = 0
    for (let text = ""; !isIt(text); ) {
      const { value } = await reader.read()
      bytes += value?.byteLength ?? 0
      text = (text + decoder.decode(value, { stream: true })).slice(-100_000)
    }
    return bytes
  }
  const bytes = await wait(isIt)
  return { tookMs: performance.now() - began, bytes, wait, close: () => reader.cancel() }
}

const small = await start()
await readEvents(small.address, (text) => text.endsWith("\n\n"))
await Bun.sleep(1_000)
console.log(`without Jobs          ${mebibytes(small.child.pid)}`)
small.child.kill()

fill(JOBS)
const { child, address, tookMs } = await start()
console.log(`address printed       after ${tookMs.toFixed(0)} ms, everything listed`)
console.log(`then                  ${mebibytes(child.pid)}; at most ${memoryOf(child.pid, "VmHWM").toFixed(0)} MiB`)
const page = await readEvents(address, (text) => text.includes(`"default/${nameOf(JOBS - 1)}":{`))
console.log(`all lanes             after ${page.tookMs.toFixed(0)} ms, ${(page.bytes / 1e6).toFixed(2)} MB`)
await Bun.sleep(2_000)
console.log(`memory                ${mebibytes(child.pid)}; at most ${memoryOf(child.pid, "VmHWM").toFixed(0)} MiB`)

const cpuOf = (pid: number) => {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ")
  return (Number(fields[11]) + Number(fields[12])) * 10
}
const calls = server.calls.length
const cpuMs = cpuOf(child.pid)
let worstMs = 0
for (let i = 0; i < CHANGES; i++) {
  const name = nameOf(FAILED + i)
  const began = performance.now()
  server.model.setStatus("jobs", "default", name, failedStatus(Date.now() - MINUTE, Date.now()))
  await page.wait((text) => text.includes(`default/${name}"`))
  worstMs = Math.max(worstMs, performance.now() - began)
  await Bun.sleep(20)
}
const lists = server.calls.slice(calls).filter(({ verb, resource }) => verb === "list" && resource !== "pods")
console.log(
  `${CHANGES} changes           the slowest on the page after ${worstMs.toFixed(0)} ms; ` +
    `${((cpuOf(child.pid) - cpuMs) / CHANGES).toFixed(1)} ms of CPU each; lists meanwhile: ${lists.length}`,
)
console.log(`memory then           ${mebibytes(child.pid)}; at most ${memoryOf(child.pid, "VmHWM").toFixed(0)} MiB`)
await page.close()

/**
 * Notes in the page when its first failure is drawn, and when that is on the screen; in ms since the navigation began.
 */
const stopwatch = `new MutationObserver((_, observer) => {
  if (!document.querySelector(".lane .mark")) return
  observer.disconnect()
  requestAnimationFrame(() => requestAnimationFrame(() => { window.firstPictureMs = performance.now() }))
}).observe(document, { subtree: true, childList: true })`
if (existsSync(CHROMIUM)) {
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] })
  const tookMs: number[] = []
  for (let i = 0; i < 5; i++) {
    const tab = await browser.newPage({ viewport: { width: 1440, height: 900 } })
    await tab.addInitScript(stopwatch)
    await tab.goto(address.href)
    await tab.waitForURL((url) => url.search === "")
    let shownMs: number | undefined
    while (shownMs === undefined) {
      await Bun.sleep(50)
      shownMs = (await tab.evaluate("window.firstPictureMs")) as number | undefined
    }
    tookMs.push(shownMs)
    await tab.close()
  }
  const sorted = tookMs.toSorted((a, b) => a - b).map((ms) => ms.toFixed(0))
  console.log(`first picture         ${sorted[2]} ms after the page was opened (${sorted[0]} to ${sorted[4]})`)
  await browser.close()
}
console.log(`load of the machine   ${loadavg()[0]?.toFixed(1)} on ${availableParallelism()} cores`)
child.kill()
await server.close()
rmSync(folder, { recursive: true })
process.exit()
