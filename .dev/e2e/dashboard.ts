// The dashboard's page in a real Chromium, on a real cluster, with an operator beside it.
//   E2E_CHROMIUM  the browser, if it is not /usr/bin/chromium
//   E2E_SHOTS     a directory to which screenshots are written
import { existsSync } from "node:fs"
import { join } from "node:path"
import axe from "axe-core"
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core"
import { clusterDir, killPart, startPart } from "./generations.ts"
import {
  apiServer,
  type Check,
  call,
  failedAt,
  failingJob,
  group,
  jobThat,
  must,
  type Namespace,
  need,
  Operator,
  prefix,
  runningJob,
  Skip,
  seconds,
  succeedingJob,
  until,
  work,
} from "./kit.ts"

const labels = { e2e: "yes" }
const executablePath = process.env.E2E_CHROMIUM || "/usr/bin/chromium"
const shots = process.env.E2E_SHOTS
const HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
const BIDI = "\u202egnp.exe\u2066"

interface Seen {
  /** What the page asked before an action, and whether it is confirmed. */
  questions: string[]
  confirms: boolean
  /** All other dialogs. */
  dialogs: string[]
  violations: string[]
  errors: string[]
  requests: { url: string; referer: string | undefined }[]
}
const browsers: Browser[] = []

/** A dashboard at work with the admin's rights, and a browser whose dialogs, errors and requests are noted. */
async function start(ns: Namespace) {
  if (!existsSync(executablePath)) throw new Skip(`${executablePath} is missing: .dev/cluster/packages.sh installs it`)
  const env = { KUBECONFIG: process.env.KUBECONFIG ?? "", HOME: work }
  const program = new Operator(env, ["dashboard", "--no-open", "-n", ns.name])
  ns.operators.push(program)
  const line = await program.says("its address", ["Dashboard: http://"])
  const address = line.slice(line.indexOf("http"))
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] })
  browsers.push(browser)
  ns.tidyUps.push(() => browser.close())
  const seen: Seen = { questions: [], confirms: true, dialogs: [], violations: [], errors: [], requests: [] }
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } })
  await context.addInitScript(
    "window.violations = []; addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective))",
  )
  const page = await newPage(context, seen)
  await page.goto(address)
  await page.waitForURL((url) => url.search === "")
  const text = async (selector: string) => (await page.locator(selector).textContent()) ?? ""
  return { program, address, context, page, seen, text }
}
type Dashboard = Awaited<ReturnType<typeof start>>

async function newPage(context: BrowserContext, seen: Seen): Promise<Page> {
  const page = await context.newPage()
  page.on("dialog", (dialog) => {
    const isQuestion = dialog.type() === "confirm"
    const said = isQuestion ? seen.questions : seen.dialogs
    said.push(dialog.message())
    const answered = isQuestion && seen.confirms ? dialog.accept() : dialog.dismiss()
    answered.catch(() => {})
  })
  page.on("pageerror", (error) => void seen.errors.push(error.message))
  page.on("request", (request) => void seen.requests.push({ url: request.url(), referer: request.headers().referer }))
  return page
}

const row = (page: Page, ns: Namespace, name: string) => page.locator(`[data-job="${ns.name}/${name}"]`)
const state = (page: Page, ns: Namespace, name: string) => row(page, ns, name).locator(".state").textContent()
const becomes = (page: Page, ns: Namespace, name: string, wanted: string, ms = 60_000) =>
  until(`${name} is shown as ${wanted}`, async () => (await state(page, ns, name).catch(() => "")) === wanted, ms)

async function shoot(page: Page, name: string): Promise<void> {
  if (shots) await page.screenshot({ path: join(shots, `${name}.png`) })
}

/** Throws if axe finds something serious on the page as it is now. */
async function accessible(page: Page, what: string): Promise<void> {
  await page.evaluate(axe.source)
  const { violations } = (await page.evaluate("axe.run()")) as axe.AxeResults
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical")
  const told = serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 200)).join("; ")}`)
  need(told.length === 0, `${what}: ${told.join("\n")}`)
}

// ---------------------------------------------------------------- what it shows and does

const page = () =>
  group("dashboard: page", async (ns, check) => {
    const RESTART_RULES = `exit:9=never, exit:3=2h, log:/${"x".repeat(150)}/=1h`
    const settings = { JOB_SELECTOR: "e2e=yes", RESTART_DELAY: "1h", RESTART_RULES }
    const operator = await ns.operator(settings)
    await operator.says("that it has started", ["starting"])
    await until("settings", () => ns.find("configmaps", "flickr-immich-k8s-sync-operator-settings"))
    const dashboard = await start(ns)
    await check("an empty namespace says which Jobs are chosen, and how to choose one", async () => {
      const text = await dashboard.text("#empty")
      need(text.includes("e2e=yes") && text.includes(`kubectl label job NAME -n ${ns.name} e2e=yes`), text)
      await shoot(dashboard.page, "empty")
      await dashboard.page.evaluate('facts.settings = ["", "JOB_NAMES=none"]; drawEmpty(0)')
      need(!(await dashboard.text("#empty")).includes("kubectl label"), "a label would choose none here")
    })
    await ns.create("jobs", jobThat("echo the last word; exit 3", { name: "alice", labels }))
    await ns.create("jobs", jobThat("exit 9", { name: "bob", labels }))
    await ns.create("jobs", succeedingJob({ name: "carol", labels }))
    await ns.create("jobs", runningJob({ name: "dave", labels }))
    await states(ns, check, dashboard)
    await changes(ns, check, dashboard)
    await actions(ns, check, dashboard)
    await views(ns, check, dashboard)
    await reading(ns, check, dashboard)
    await looks(ns, check, dashboard)
    await extremes(ns, check, dashboard)
    await access(check, dashboard)
  })

async function states(ns: Namespace, check: Check, { page, text }: Dashboard): Promise<void> {
  await check(
    "each chosen Job has a lane with its state and cause, and a failure's log is there after a click",
    async () => {
      await becomes(page, ns, "alice", "waiting")
      await becomes(page, ns, "bob", "given up")
      await becomes(page, ns, "carol", "succeeded")
      await becomes(page, ns, "dave", "running")
      await until("alice's cause", async () => (await row(page, ns, "alice").textContent())?.includes("exit:3"))
      need(/in 1 h 59 min|in 2 h/.test((await row(page, ns, "alice").textContent()) ?? ""), "no countdown")
      await row(page, ns, "alice").locator("a").click()
      await until("the log", async () => (await text("#panel")).includes("the last word"))
      const panel = await text("#panel")
      need(/rule exit:3=2h/.test(panel) && /RESTART_RULES=exit:9=never, exit:3=2h/.test(panel), panel)
      need(
        (await page.locator("#panel .hit").textContent())?.includes("exit:3=2h"),
        "the rule that decided is not marked",
      )
      await shoot(page, "panel")
      await page.keyboard.press("Escape")
      await page.locator("#panel").waitFor({ state: "hidden" })
    },
  )
}

async function changes(ns: Namespace, check: Check, { page }: Dashboard): Promise<void> {
  await check("a Job fails, and its lane changes within 2 s of it, without a reload", async () => {
    await page.evaluate("window.isSamePage = true")
    let failedSeenAt = 0
    await ns.watch("jobs", (_, job) => {
      if (job.metadata.name === "erin" && failedAt(job) !== undefined) failedSeenAt ||= performance.now()
    })
    await ns.create("jobs", failingJob({ name: "erin", labels }))
    await becomes(page, ns, "erin", "waiting")
    const shownAt = performance.now()
    await until("the watch has seen it too", () => failedSeenAt > 0)
    need(await page.evaluate("window.isSamePage"), "it was loaded again")
    const lateMs = Math.max(0, shownAt - failedSeenAt)
    // On a loaded machine a look at the page takes its time too.
    await state(page, ns, "erin")
    const lookMs = performance.now() - shownAt
    need(lateMs < 2_000 + 2 * lookMs, `shown ${seconds(lateMs)} after, a look takes ${seconds(lookMs)}`)
    return `${seconds(lateMs)} after the watch of the check itself saw it`
  })
}

/** Clicks an action in a Job's panel. */
async function act(page: Page, ns: Namespace, name: string, action: string): Promise<void> {
  if ((await page.locator("#panel[open]").count()) === 0) await row(page, ns, name).locator("a").click()
  await page.locator("#title", { hasText: name }).waitFor()
  await page.locator("#panel button", { hasText: action }).click()
}

async function actions(ns: Namespace, check: Check, { page, seen, text }: Dashboard): Promise<void> {
  const said = async (pattern: RegExp) => {
    await page.locator("#said", { hasText: /[^…]$/ }).waitFor({ timeout: 60_000 })
    const words = await text("#said")
    need(pattern.test(words), `it says ${words}`)
    return words
  }
  await check("restart now, once confirmed, brings back a Job that was given up", async () => {
    const old = await ns.failed("bob")
    seen.confirms = false
    await act(page, ns, "bob", "Restart now")
    need(seen.questions.at(-1)?.startsWith("Restart now: bob?"), `it asks ${seen.questions.at(-1)}`)
    seen.confirms = true
    need(
      (await ns.job("bob"))?.metadata.uid === old.metadata.uid,
      "it was restarted although the question was declined",
    )
    await act(page, ns, "bob", "Restart now")
    const words = await said(/new uid/)
    const young = await ns.another(old)
    need(words.includes(young.metadata.uid), `${words}, not ${young.metadata.uid}`)
    await ns.noIntent()
    await page.keyboard.press("Escape")
  })
  await check("pause and resume set and remove the annotation, and the lane shows it", async () => {
    await act(page, ns, "alice", "Pause")
    await said(/is paused$/)
    await becomes(page, ns, "alice", "left alone, paused")
    need((await page.evaluate("document.activeElement.id")) === "pause", "the button has lost the focus")
    need((await ns.job("alice"))?.metadata.annotations?.[`${prefix}paused`] === "true", "no annotation")
    await act(page, ns, "alice", "Resume")
    await becomes(page, ns, "alice", "waiting")
    need((await ns.job("alice"))?.metadata.annotations?.[`${prefix}paused`] === undefined, "the annotation stays")
    await page.keyboard.press("Escape")
  })
  await check("a rejection shows the server's words", async () => {
    const full = { metadata: { name: "full" }, spec: { hard: { "count/jobs.batch": "1" } } }
    await ns.create("resourcequotas", full)
    await until("the quota counts", async () => (await ns.find("resourcequotas", "full"))?.status?.used !== undefined)
    const old = await ns.failed("erin")
    await act(page, ns, "erin", "Restart now")
    await said(/exceeded quota/)
    need((await ns.job("erin"))?.metadata.uid === old.metadata.uid, "it was restarted")
    await must("DELETE", ns.path("resourcequotas", "full"))
    await page.keyboard.press("Escape")
  })
}

async function views(ns: Namespace, check: Check, { page, context, seen }: Dashboard): Promise<void> {
  const shown = (at: Page) => at.locator(".row a").allTextContents()
  await check("filters by state and cause; the address of a view shows the same in another tab", async () => {
    const choose = (field: string, value: string) => page.locator(`[name=${field}]`).selectOption(value)
    await choose("state", "waiting")
    await until("waiting Jobs alone", async () => (await shown(page)).toSorted().join() === "alice,erin")
    await choose("range", "7d")
    await row(page, ns, "alice").locator("a").click()
    const other = await newPage(context, seen)
    await other.goto(page.url())
    await until("the same in another tab", async () => (await shown(other)).toSorted().join() === "alice,erin")
    need((await other.locator("#title").textContent()) === "alice", "the panel is not open")
    need((await other.locator("[name=range]").inputValue()) === "7d", "another range")
    await other.close()
    await page.keyboard.press("Escape")
    await choose("state", "")
    await choose("cause", "exit:9")
    await until("one cause alone", async () => (await shown(page)).join() === "bob")
    await choose("cause", "")
    await page.locator("[name=name]").fill(ns.name)
    await until("none: no name that is shown has the namespace", async () => (await shown(page)).length === 0)
    await page.locator("[name=name]").fill("Alice ")
    await until("one name, as a phone writes it", async () => (await shown(page)).join() === "alice")
    await page.locator("[name=name]").fill("")
    await until("all again", async () => (await shown(page)).length === 5)
  })
  await check("by keyboard alone: Tab to a Job, Enter opens it, Escape returns to it", async () => {
    await page.locator("[name=name]").focus()
    const focused = "document.activeElement.closest('.row')?.dataset.job"
    await until("a Job has the focus", async () => {
      await page.keyboard.press("Tab")
      return await page.evaluate(focused)
    })
    const job = await page.evaluate(focused)
    await page.keyboard.press("Enter")
    await page.locator("#panel").waitFor()
    await until("the panel has the focus", () => page.evaluate("Boolean(document.activeElement.closest('#panel'))"))
    await page.keyboard.press("Escape")
    await until("the Job has it again", async () => (await page.evaluate(focused)) === job)
  })
  await check("the focus stays on its Job or filter while others come and go", async () => {
    const place = "document.activeElement.name || document.activeElement.closest('.row')?.dataset.job"
    const places = [row(page, ns, "dave").locator("a"), page.locator("[name=range]"), page.locator("[name=state]")]
    for (const [i, at] of places.entries()) {
      await at.focus()
      const before = await page.evaluate(place)
      await ns.create("jobs", failingJob({ name: `grace-${i}`, labels }))
      await becomes(page, ns, `grace-${i}`, "waiting")
      const after = await page.evaluate(place)
      need(before && after === before, `it was on ${before}, and is on ${after}`)
    }
  })
}

/** What a page that is read for long must not disturb. */
async function reading(ns: Namespace, check: Check, { page, context, seen, text }: Dashboard): Promise<void> {
  await check("while nothing changes nothing is read out again, and a selection stays", async () => {
    await page.locator("[name=name]").fill("none of them")
    await until("none", async () => page.locator("#empty a").isVisible())
    await page.evaluate(`{
      window.changes = 0
      const observer = new MutationObserver((records) => (changes += records.length))
      for (const id of ["live", "banner", "empty", "foot"])
        observer.observe(document.getElementById(id), { childList: true })
    }`)
    await Bun.sleep(12_000)
    need((await page.evaluate("changes")) === 0, `${await page.evaluate("changes")} changes`)
    await page.locator("[name=name]").fill("")
  })
  await check(
    "a log stays where it was scrolled to while its Job changes, and so does the list behind it",
    async () => {
      await page.setViewportSize({ width: 1280, height: 300 })
      await page.evaluate("scrollTo(0, 60)")
      await row(page, ns, "alice").locator("a").click()
      await until("the log", async () => (await text("#panel")).includes("the last word"))
      await page.evaluate(`{
      window.listAt = scrollY
      window.log = document.querySelector("#panel details[open] pre")
      log.style.height = "3rem"
      log.scrollTop = 9
    }`)
      const patch = { metadata: { annotations: { [`${prefix}group`]: "read" } } }
      await must("PATCH", ns.path("jobs", "alice"), patch)
      await until("the annotation", async () => (await text("#details")).includes("group=read"))
      need(await page.evaluate("log.isConnected && log.scrollTop === 9"), "the log was drawn anew")
      await page.keyboard.press("Escape")
      await page.locator("#panel").waitFor({ state: "hidden" })
      need(await page.evaluate("listAt > 0 && scrollY === listAt"), "the list has moved")
      await page.setViewportSize({ width: 1280, height: 800 })
    },
  )
  await check("more tabs than a browser has connections to a host, of which one is seen, are all live", async () => {
    const setHidden = (tab: Page, isHidden: boolean) =>
      tab.evaluate(`Object.defineProperty(document, "hidden", { value: ${isHidden}, configurable: true })
        document.dispatchEvent(new Event("visibilitychange", { bubbles: true }))`)
    const tabs: Page[] = []
    for (let i = 0; i < 7; i++) {
      await setHidden(tabs.at(-1) ?? page, true)
      tabs.push(await newPage(context, seen))
      await tabs.at(-1)!.goto(new URL(page.url()).origin, { timeout: 20_000 })
      await row(tabs.at(-1)!, ns, "alice").waitFor()
    }
    for (const tab of tabs) await tab.close()
    await setHidden(page, false)
    await ns.create("jobs", failingJob({ name: "heidi", labels }))
    await becomes(page, ns, "heidi", "waiting")
    need((await text("#live")) === "Live" && !(await page.locator("#banner").isVisible()), await text("#banner"))
  })
}

async function looks(ns: Namespace, check: Check, { page, text }: Dashboard): Promise<void> {
  await check("markup, scripts, control and bidi characters in logs, names and rules are text", async () => {
    const script = `printf '%s\\n' '${HOSTILE}' '${BIDI}' '\u0007\u001b[31m bell'; exit 5`
    const annotations = { [`${prefix}restart-rules`]: `exit:5=1h, ${HOSTILE}` }
    await ns.create("jobs", jobThat(script, { name: "mallory", labels, annotations }))
    await becomes(page, ns, "mallory", "waiting")
    await until("its record", async () => (await row(page, ns, "mallory").textContent())?.includes("exit:5"))
    await ns.create("configmaps", forged("mallory"))
    await row(page, ns, "mallory").locator("a").click()
    await until("the log", async () => (await text("#panel")).includes(HOSTILE))
    await until("both failures", async () => (await page.locator("#panel summary").count()) === 2)
    await page.locator("#panel details:not([open]) summary").click()
    await until("the forged record", async () => (await text("#panel")).includes(`pod ${HOSTILE}`))
    const panel = await text("#panel")
    need(panel.includes("restart-rules"), "the rule is not shown")
    for (const sign of [...BIDI.match(/[\u202e\u2066]/g)!, "\u0007", "\u001b"])
      need(!panel.includes(sign), `U+${sign.charCodeAt(0).toString(16)} is there raw`)
    need(panel.includes("\\u{202e}"), "the bidi character is not visible")
    need((await page.locator("#panel img, #panel script, .row img").count()) === 0, "markup has become elements")
    await page.keyboard.press("Escape")
  })
  await check(
    "light and dark, from 360 px to a wall display: nothing is cut off, and axe finds nothing serious",
    async () => {
      for (const colorScheme of ["light", "dark"] as const)
        for (const [width, height] of [
          [360, 740],
          [1280, 800],
          [2560, 1440],
        ] as const) {
          await page.emulateMedia({ colorScheme })
          await page.setViewportSize({ width, height })
          await accessible(page, `the list, ${colorScheme}, ${width} px`)
          await shoot(page, `list-${colorScheme}-${width}`)
          need(
            await page.evaluate("document.documentElement.scrollWidth <= innerWidth"),
            `wider than ${width} px: it scrolls sideways`,
          )
          await row(page, ns, "alice").locator("a").click()
          await until("the log", async () => (await text("#panel")).includes("the last word"))
          await accessible(page, `the panel, ${colorScheme}, ${width} px`)
          await shoot(page, `panel-${colorScheme}-${width}`)
          await page.keyboard.press("Escape")
        }
      await page.setViewportSize({ width: 1280, height: 800 })
    },
  )
}

/** What only some people's settings, or long texts, bring about. */
async function extremes(ns: Namespace, check: Check, { page }: Dashboard): Promise<void> {
  await check("in the system's own colours each failure still has its mark, in the lane and in the panel", async () => {
    await row(page, ns, "alice").locator("a").click()
    await page.emulateMedia({ forcedColors: "active" })
    const isSeen = `(mark) => {
      const colorOf = (node) => getComputedStyle(node).backgroundColor
      return colorOf(mark) !== colorOf(document.body)
    }`
    for (const place of [`[data-job="${ns.name}/alice"]`, "#panel"])
      need(await page.evaluate(`[...document.querySelectorAll('${place} .mark')].some(${isSeen})`), `none in ${place}`)
    await page.emulateMedia({ forcedColors: "none" })
    await page.keyboard.press("Escape")
  })
  await check("no label of the time axis covers another, or is beside the list, in any range and width", async () => {
    for (const width of [360, 800, 1_000, 1_280])
      for (const range of ["24h", "7d", "30d"]) {
        await page.setViewportSize({ width, height: 800 })
        await page.locator("[name=range]").selectOption(range)
        await until("the range", () => page.evaluate(`location.hash.includes("range=${range}")`))
        await page.evaluate("drawAxis()")
        const ends = (await page.evaluate(`[...document.querySelectorAll("main, #ticks span:not(:empty)")]
          .map((label) => label.getBoundingClientRect()).filter(({ width }) => width > 0)
          .map(({ left, right }) => [left, right])`)) as [number, number][]
        const [list = [0, 0], ...labels] = ends
        const isFree = labels.every(([left], i) => left >= (labels[i - 1]?.[1] ?? list[0]))
        need(labels.length > 1 && isFree, `${range}, ${width} px: ${JSON.stringify(ends)}`)
      }
    await page.locator("[name=range]").selectOption("24h")
  })
  await check("the longest cause and rule leave room for what is beside them", async () => {
    await page.setViewportSize({ width: 360, height: 740 })
    const annotations = { [`${prefix}last-cause`]: "c".repeat(300) }
    await ns.create("jobs", runningJob({ name: "oscar", labels, annotations }))
    await becomes(page, ns, "oscar", "running")
    need(await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways")
    const widthOf = async (selector: string) => (await page.locator(selector).first().boundingBox())?.width ?? 0
    need((await widthOf(`[data-job="${ns.name}/oscar"] a`)) > 100, "its name is narrow")
    await row(page, ns, "oscar").locator("a").click()
    need((await widthOf("#panel .rules li:last-child span")) > 100, "the verdict on its rule is narrow")
    await page.locator("#panel button", { hasText: "Close" }).click()
    await page.locator("#panel").waitFor({ state: "hidden" })
    await page.setViewportSize({ width: 1280, height: 800 })
  })
}

/** A record as somebody might forge it who may write ConfigMaps. */
const forged = (job: string) => ({
  metadata: {
    name: "forged",
    labels: { [`${prefix}record`]: "failure", [`${prefix}job`]: job },
    annotations: {
      [`${prefix}cause`]: HOSTILE,
      [`${prefix}summary`]: `${HOSTILE}${BIDI}`,
      [`${prefix}decided`]: HOSTILE,
      [`${prefix}failed-at`]: new Date(Date.now() - 3_600_000).toISOString(),
    },
  },
  data: {
    "failure.json": JSON.stringify({
      reason: HOSTILE,
      pods: [{ name: HOSTILE, uid: "u", phase: BIDI, containers: [{ name: HOSTILE, ended: true, message: HOSTILE }] }],
      morePods: 0,
    }),
  },
})

async function access(check: Check, { page, seen, address, program }: Dashboard): Promise<void> {
  await check(
    "a dashboard that is stopped, as by Ctrl-Z, is said within a minute, and so is that it goes on",
    async () => {
      const isLive = async () => (await page.locator("#live").textContent()) === "Live"
      program.kill("SIGSTOP")
      await until("it says so", async () => !(await isLive()), 70_000)
      program.kill("SIGCONT")
      await until("it is live again", isLive, 30_000)
    },
  )
  await check(
    "no dialog, no error, no report of the content security policy; no other host, no token in a referrer or log",
    async () => {
      const violations = (await page.evaluate("violations")) as string[]
      need(seen.dialogs.length + seen.errors.length + violations.length === 0, JSON.stringify({ ...seen, violations }))
      const { origin, searchParams } = new URL(address)
      const token = searchParams.get("token") as string
      const others = seen.requests.filter(({ url }) => new URL(url).origin !== origin && !url.startsWith("data:"))
      need(others.length === 0, `requests to others: ${others.map(({ url }) => url).join(", ")}`)
      need(!seen.requests.some(({ referer }) => referer?.includes(token)), "the token is in a referrer")
      need(!page.url().includes(token), "the token is in the address bar")
      need(program.saying(token).length === 1, "the token is printed elsewhere")
      return `${seen.requests.length} requests`
    },
  )
}

// ---------------------------------------------------------------- an API server that is away

/** Kills the API server: nothing else may run meanwhile. */
export const dashboardOutage = () =>
  group("dashboard: outage", async (ns, check) => {
    await ns.operator({ JOB_SELECTOR: "e2e=yes", RESTART_DELAY: "1h" })
    await until("settings", () => ns.find("configmaps", "flickr-immich-k8s-sync-operator-settings"))
    await ns.create("jobs", runningJob({ name: "dave", labels }))
    await check(
      "the page says that the API server is away, and shows what it knew; when it is back, all is live again",
      async () => {
        if (!clusterDir) throw new Skip("E2E_CLUSTER_DIR is not set")
        const { page, text } = await start(ns)
        await becomes(page, ns, "dave", "running")
        await killPart("kube-apiserver")
        try {
          await until("it says so", async () => (await text("#live")) === "API server unreachable")
          need((await text("#banner")).includes(apiServer.url), await text("#banner"))
          need((await state(page, ns, "dave")) === "running", "the lane is gone")
          await shoot(page, "outage")
        } finally {
          await startPart("kube-apiserver")
          await killPart("kube-controller-manager")
          await startPart("kube-controller-manager")
        }
        const backAt = performance.now()
        await until("it is live again", async () => (await text("#live")) === "Live")
        await until("a new Job can be created", async () => {
          const { status } = await call("POST", ns.path("jobs"), succeedingJob({ name: "frank", labels }))
          return status === 201
        })
        await becomes(page, ns, "frank", "succeeded", 120_000)
        return `live ${seconds(performance.now() - backAt)} after the API server`
      },
    )
  })

export const dashboardGroups = () => [page()]
