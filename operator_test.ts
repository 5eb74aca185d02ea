/**
 * The pure chapters of operator.ts, in their order, where no test needs a server. The others are tested in .dev/test
 * against an embedded API server, and the whole in .dev/e2e on a real cluster.
 *
 * Faults that people reported in public about such tools each have an id, which is part of the names of their tests:
 * .github/docs/reports.md lists them with the reports.
 */
import { describe, expect, spyOn, test } from "bun:test"
import { readFileSync } from "node:fs"
import fc from "fast-check"
import { helpText } from "./cli.ts"
import {
  type Additions,
  ApiError,
  alignedRows,
  allowed,
  blockersText,
  blocksReplacement,
  bookkeepingFor,
  buildReplacement,
  Cache,
  type Cause,
  type Config,
  causeOf,
  contentOf,
  type Decision,
  type Desired,
  decide,
  decideOnRequest,
  decisionText,
  draftFrom,
  draftOf,
  duration,
  durationText,
  eventFor,
  eventTextOf,
  evidenceLines,
  type Fact,
  failureOf,
  fingerprintOf,
  flawOf,
  groupOf,
  INTENT,
  type Intent,
  inexactNumber,
  instant,
  instantText,
  intentFor,
  isChanged,
  isIntent,
  isSelected,
  isThreatenedByTtl,
  type Job,
  type JobState,
  jsonRecord,
  jsonText,
  keepJob,
  Liveness,
  labelValueFor,
  logLineOf,
  longestWaitMs,
  type Monotonic,
  maskSecrets,
  matches,
  messageOf,
  moreMemory,
  moveTo,
  newestFirst,
  nextStep,
  type Observation,
  Operator,
  onAbort,
  overridesOf,
  Permissions,
  type Pod,
  PREFIX,
  parseRules,
  parseSelector,
  podSelector,
  printable,
  quantity,
  REPLACEMENT,
  REPLACES,
  RIGHTS,
  readAskedWait,
  readIntent,
  readPast,
  readRecord,
  readSettings,
  recordFor,
  renderLine,
  replacementFor,
  SETTINGS,
  SettingsError,
  Spacing,
  type Step,
  skewFrom,
  staleRecords,
  stateOf,
  systemClock,
  tailOf,
  textRecord,
  UNKNOWN,
  variablesOf,
  verdictOf,
  viewJob,
  viewPod,
  type Failure as WhatFailed,
  Workqueue,
  wasDeletedByPerson,
} from "./operator.ts"

const NOW = Date.parse("2026-03-01T12:00:00Z")
const monotonic = (ms: number) => ms as Monotonic
const [SECOND, MINUTE, HOUR, DAY] = [1_000, 60_000, 3_600_000, 86_400_000]
const deleted = { deletionTimestamp: instantText(NOW) }
const NONE: Additions = { annotations: {}, memory: {} }
const COULD_RUN = "it could run: suspend, parallelism or managedBy was changed"
/** How the end of exited() is told. */
const RAN = ", ran 1m, ended 2026-03-01T11:01:00Z"

describe("onAbort()", () => {
  test("runs what was not cancelled, once", () => {
    const stop = new AbortController()
    const ran: string[] = []
    const cancels = ["a", "b", "c"].map((name) => onAbort(stop.signal, () => ran.push(name)))
    cancels[1]?.()
    stop.abort()
    stop.abort()
    expect(ran).toEqual(["a", "c"])
  })

  test("adds one listener to a signal, however many wait for it", () => {
    const { signal } = new AbortController()
    const added = spyOn(signal, "addEventListener")
    for (let i = 0; i < 1_000; i++) onAbort(signal, () => {})
    expect(added).toHaveBeenCalledTimes(1)
  })
})

describe("2 Settings", () => {
  test("readSettings() has the defaults of the Python operator", () => {
    expect(readSettings({ JOB_NAMES: "load-a" })).toEqual({
      config: {
        logLevel: "debug",
        logFormat: "text",
        namespaces: ["flickr-downloader"],
        jobNames: ["flickr-downloader/load-a"],
        jobSelector: undefined,
        checkIntervalMs: MINUTE,
        restartDelayMs: HOUR,
        skipDelayOnOom: false,
        restartRules: undefined,
        maxRestarts: undefined,
        restartSpacingMs: 0,
        logLines: 20,
        historyLimit: 10,
        dryRun: false,
        healthPort: 8080,
        notifyUrl: undefined,
      },
      rows: expect.arrayContaining([
        { variable: "RESTART_DELAY", value: "1h", from: "default" },
        { variable: "JOB_NAMES", value: "load-a", from: "JOB_NAMES" },
        { variable: "JOB_SELECTOR", value: "none", from: "default" },
      ]),
      warnings: [],
    })
  })

  test("readSettings() reads back what variablesOf() has written, and secrets are not in it", () => {
    const durations = fc.integer({ min: 1, max: 3650 * 86_400 }).map(String)
    const rules = fc.constantFrom("", "exit:3=6h, log:/invalid, token/i=never", "evicted=30s\noom=0s..1h,any=90")
    const selected = fc.constantFrom(
      { JOB_NAMES: "a,b/c", NAMESPACE: "b" },
      { JOB_SELECTOR: "x in (a, b),!y" },
      { JOB_NAMES: "d" },
    )
    const booleans = fc.constantFrom("yes", "no")
    const levels = fc.constantFrom("trace", "SUCCESS", "critical", "")
    always(
      [durations, rules, selected, booleans, levels, fc.constantFrom("", "0", "7")],
      (ms, RESTART_RULES, select, yes, LOG_LEVEL, MAX_RESTARTS) => {
        const env = {
          RESTART_DELAY: ms,
          RESTART_SPACING: ms,
          SKIP_DELAY_ON_OOM: yes,
          RESTART_RULES,
          LOG_LEVEL,
          MAX_RESTARTS,
          ...select,
        }
        const { config } = readSettings({
          ...env,
          ...("JOB_NAMES" in select && select.NAMESPACE ? { JOB_NAMES: "a" } : {}),
          NOTIFY_URL: "https://h.test/s3cr3t",
        })
        expect(readSettings(variablesOf(config)).config).toEqual({ ...config, notifyUrl: undefined })
        expect(JSON.stringify(variablesOf(config))).not.toMatch(/h\.test|NOTIFY_URL/)
      },
    )
  })

  // G02, its table. The grammar: whole seconds, or numbers with a unit.
  const durations = {
    "1h": '|1h| |\n|\uFEFF|""|60m|3600',
    "1m": '60 seconds|60| 60\n|060|60s|1M|60\r\n|\uFEFF60|\u00A060\u00A0|"60"|\'60s\'\n|" 60 "|0h1m0s',
    "1h30m": "1h30m|90m|5400|1H30M|1h 30m|1.5h|90 minutes",
    "1h6m": "1.1h",
    "0s": "0|0s|0d",
    "8d1h1m1s": "8d1h1m1s|8D1h1m1s",
    "3650d": "3650d",
    "115d17h46m39s": "9999999", // G01
    "24d20h31m24s": "2147484", // G01
    "24d20h31m23s": "2147483", // G01
    refused: `1e3|1.5|0x3c|-1|NaN|Infinity|6_0|+60|１０|６０s|60ms|1.5s|1w|s|h|-|1h30|3651d|1,5|60;|∞|٦٠|60s60
      |6 0|60 # a minute|'60|60"|${"9".repeat(400)}|${"9".repeat(400)}d|6\u200B0|60\n60`,
  }
  test.each(rowsOf(durations))("readSettings() reads as RESTART_DELAY %s: %j (G01, G02)", (expected, text) => {
    if (expected !== "refused")
      return expect(durationText(settings({ RESTART_DELAY: text }).restartDelayMs)).toBe(expected)
    expect(mistakesOf({ RESTART_DELAY: text })).toEqual([
      expect.stringMatching(/^RESTART_DELAY cannot be ".*": write whole seconds/),
    ])
  })

  test("duration() reads back what durationText() says, for any whole second", () => {
    always([fc.integer({ min: 0, max: 3650 * 86_400 })], (s) => {
      expect(duration(0)(durationText(s * SECOND))).toBe(s * SECOND)
      expect(duration(0)(String(s))).toBe(s * SECOND)
    })
  })

  test("duration() takes a text of any kind as a duration within its limits or refuses it", () => {
    always([fc.oneof(fc.string({ unit: "binary" }), fc.stringMatching(/^[0-9dhms .e+-]{0,12}$/))], (text) => {
      const ms = attempt(() => duration(1_000)(text))
      if (ms !== undefined)
        expect(Number.isSafeInteger(ms) && ms >= 1_000 && ms <= 3650 * DAY && /^\d/.test(text)).toBe(true)
    })
    expect(() => duration(0)("")).toThrow()
  })

  test("readSettings() wants at least 1 s for CHECK_INTERVAL, and at most 10 000 LOG_LINES", () => {
    expect(mistakesOf({ CHECK_INTERVAL: "0" })).toEqual([
      'CHECK_INTERVAL cannot be "0": write whole seconds or a duration like 90s, 15m, 1h30m, from 1s to 3650d',
    ])
    for (const text of ["-1", "10001", "1.5", "1e3", "ten", "２０"])
      expect(mistakesOf({ LOG_LINES: text })).toEqual([
        `LOG_LINES cannot be "${text}": write a whole number from 0 to 10000`,
      ])
    expect([settings({ LOG_LINES: "0" }).logLines, settings({ LOG_LINES: "'10000'\n" }).logLines]).toEqual([0, 10_000])
  })

  test("readSettings() reads booleans as people write them", () => {
    for (const text of ["true", "True", "YES", "on", "1", ' "true"\n', "\uFEFFyes"])
      expect(settings({ DRY_RUN: text }).dryRun).toBe(true)
    for (const text of ["false", "No", "off", "0", "", "'false'"])
      expect(settings({ DRY_RUN: text }).dryRun).toBe(false)
    for (const text of ["ja", "y", "2", "tru", "true # yes", "constructor", "__proto__"])
      expect(mistakesOf({ DRY_RUN: text })).toEqual([
        `DRY_RUN cannot be ${JSON.stringify(text)}: ${"write one of 0, 1, true, false, yes, no, on, off"}`,
      ])
  })

  test("readSettings() takes LOG_LEVEL before LOGURU_LEVEL, and names the one that is wrong", () => {
    const levelOf = (env: Env) => settings(env).logLevel
    for (const [text, level] of Object.entries({
      TRACE: "trace",
      success: "info",
      Warning: "warning",
      CRITICAL: "fatal",
      ERROR: "error",
    }))
      expect(levelOf({ LOG_LEVEL: text })).toBe(level as Config["logLevel"])
    expect(levelOf({ LOGURU_LEVEL: "ERROR" })).toBe("error")
    expect(levelOf({ LOG_LEVEL: "INFO", LOGURU_LEVEL: "ERROR" })).toBe("info")
    expect(levelOf({ LOG_LEVEL: " \n", LOGURU_LEVEL: "ERROR" })).toBe("error")
    expect(mistakesOf({ LOGURU_LEVEL: "verbose" })[0]).toStartWith(
      'LOGURU_LEVEL cannot be "verbose": write one of trace, debug, info',
    )
  })

  test("readSettings() reports every mistake at once: the variable, the value seen, what is allowed", () => {
    const mistakes = mistakesOf({ ...wrongEverywhere(), JOB_NAMES: "Load_A" })
    expect(mistakes.map((line) => line.split(" cannot be ")[0])).toEqual(SETTINGS.map(({ variable }) => variable))
    for (const line of mistakes) expect(line).toMatch(/^[A-Z_]+ cannot be ".*": .*(write|is no name).*[a-z]/)
  })

  test("readSettings() wants JOB_NAMES or JOB_SELECTOR", () => {
    const nothing = ["JOB_NAMES and JOB_SELECTOR are both empty: set one, so that it is known which Jobs to restart"]
    expect([mistakesOf({ JOB_NAMES: "" }), mistakesOf({ JOB_NAMES: "''", JOB_SELECTOR: " \n" })]).toEqual([
      nothing,
      nothing,
    ])
    expect(settings({ JOB_NAMES: "", JOB_SELECTOR: "app=load" })).toMatchObject({
      jobNames: undefined,
      jobSelector: { text: "app=load" },
    })
  })

  test("readSettings() reads names with commas, blanks and lines between them, each once", () => {
    for (const text of [
      "load-a,load-b",
      " load-a , load-b,",
      "load-a\r\nload-b\n",
      "load-a\u00A0load-b",
      "\uFEFF'load-a,load-b,load-a'",
    ])
      expect(settings({ NAMESPACE: "x", JOB_NAMES: text }).jobNames).toEqual(["x/load-a", "x/load-b"])
    expect(settings({ JOB_NAMES: "a.b-c.9" }).jobNames).toEqual(["batch-a/a.b-c.9"])
    expect(settings({ JOB_NAMES: "a".repeat(63) }).jobNames).toEqual([`batch-a/${"a".repeat(63)}`])
  })

  const impossible =
    `Load_A|load-a-|${"a".repeat(64)}|../../pods/x|load%2Fa|load-a?dryRun=All|*|-a|a..b|a/b/c|ä|.`.split("|")
  test.each(impossible)("readSettings() refuses the Job name %p (G11)", (name) => {
    expect(mistakesOf({ JOB_NAMES: `ok,${name}` })).toEqual([
      expect.stringContaining(`${JSON.stringify(name)} is no name`),
    ])
    if (name !== "a/b/c" && name !== "../../pods/x")
      expect(mistakesOf({ NAMESPACE: name })[0]).toStartWith(`NAMESPACE cannot be "${name}"`)
  })

  test("readSettings() refuses commas without a name between them (G11)", () => {
    expect(mistakesOf({ JOB_NAMES: " , ," })).toEqual(['JOB_NAMES cannot be " , ,": write at least one name'])
  })

  test("H32 readSettings() rejects more than a hundred namespaces, beside all other mistakes", () => {
    const listOf = (count: number) => Array.from({ length: count }, (_, i) => `team-${i}`).join()
    expect(settings({ NAMESPACE: `${listOf(100)},team-0`, JOB_NAMES: "", JOB_SELECTOR: "a" }).namespaces).toHaveLength(
      100,
    )
    const [first, second, ...more] = mistakesOf({ NAMESPACE: listOf(101), LOG_LINES: "-1" })
    expect(first).toMatch(/^NAMESPACE cannot be "team-0,.*…": it has 101 names, and at most 100 can be watched/)
    expect(second).toStartWith('LOG_LINES cannot be "-1"')
    expect(more).toEqual([])
  })

  test("readSettings() wants namespace/name where there are several namespaces, and knows each namespace", () => {
    expect(settings({ NAMESPACE: "a, b", JOB_NAMES: "a/load,b/load" })).toMatchObject({
      namespaces: ["a", "b"],
      jobNames: ["a/load", "b/load"],
    })
    expect(settings({ NAMESPACE: "a", JOB_NAMES: "a/load, tidy, load" }).jobNames).toEqual(["a/load", "a/tidy"])
    expect(mistakesOf({ NAMESPACE: "a,b", JOB_NAMES: "a/ok,load,c/load" })).toEqual([
      'JOB_NAMES cannot have "load": write namespace/name, with a namespace of NAMESPACE (a, b)',
      'JOB_NAMES cannot have "c/load": write namespace/name, with a namespace of NAMESPACE (a, b)',
    ])
  })

  // As k8s.io/apimachinery/pkg/labels reads them.
  const selectors = {
    "": "",
    "a exists ": "a|\ra| a ",
    "a absent ": "!a|! a",
    "a in b": "a=b|a == b|a in(b)|a in ( b )|a\tin\n(b)",
    "a notin b": "a!=b|a notin\n (b)|a != b",
    "a in ": "a=|a= |a in ()",
    "a in ; z in ": "a= ,z= ",
    "a in b,": "a in (b,)",
    "a in b,c; d absent ; e notin f; g in h; x.y/z notin q": "a in (b, c),!d,e!=f,g==h, x.y/z notin (q)",
    "a in b; c absent ": "a=b,\n!c|a=b,\r\n!c",
    "notin in in; in notin in,notin": "notin=in,in notin (in,notin)",
    "0.1.2.domain/99 notin 10.10.100.1,tick.tack.clock": "0.1.2.domain/99 notin (10.10.100.1, tick.tack.clock)",
    refused: `a,|a=b,|,| ,|,a|a,,b|a=b,,c=d|a==b==c|!a=b|a=b=c|!!|!|=b|a=-b|a=b-|-a|a/b/c
      |/a|a/|a>1|a<1|a=(b)|a!b|ä=b|a=ä|a!==b|a b|a=b c=d
      |a in b|a in (b|a in b)|a in (b c)|a in ((b))|a,(b)|a notin|a=b, |ain (b)|a In (b)`,
  }
  test.each(rowsOf(selectors))("parseSelector() reads as %j, as kubectl does: %j", (expected, text) => {
    if (expected === "refused")
      return expect(() => parseSelector(text)).toThrow(/^at character \d+ write a condition: /)
    const { requirements } = parseSelector(text)
    const operatorOf = ({ values, isNegated }: (typeof requirements)[number]) =>
      (values ? ["in", "notin"] : ["exists", "absent"])[Number(isNegated)]
    const read = requirements.map((one) => `${one.key} ${operatorOf(one)} ${one.values ?? ""}`)
    expect(read.join("; ")).toBe(expected)
  })
  test("parseSelector() refuses two conditions side by side", () =>
    expect(() => parseSelector("a||b=c")).toThrow("at character 1"))

  test("parseSelector() refuses what can be no label, as kubectl does", () => {
    const long = "x".repeat(64)
    for (const text of [`a=${long}`, `a notin (b,${long})`, `!${long}`, `${"p".repeat(254)}/a`])
      expect(() => parseSelector(text)).toThrow("at character 1 write keys and values of at most 63 characters")
    for (const text of ["a..b/c=d", "-a.b/c", "a./c"])
      expect(() => parseSelector(text)).toThrow("at character 1 write a condition")
    expect(parseSelector(`example.com/${long.slice(1)}=${long.slice(1)}`).requirements.length).toBe(1)
  })

  test("parseSelector() names the place of a mistake", () => {
    expect(mistakesOf({ JOB_SELECTOR: "app=load, team in (x" })).toEqual([
      'JOB_SELECTOR cannot be "app=load, team in (x": at character 10 write a condition: ' +
        "key=value, key!=value, key in (a,b), key or !key",
    ])
  })

  test("matches() holds != and notin for an absent label, and asks for every condition", () => {
    const rows: [string, Record<string, string>, boolean][] = [
      ["", {}, true],
      ["x=z", {}, false],
      ["x!=z", {}, true],
      ["x notin (z)", { x: "z" }, false],
      ["x", { x: "" }, true],
      ["!x", { x: "" }, false],
      ["x=y,z=w", { x: "y", z: "w" }, true],
      ["x=y,z=w", { x: "w", z: "w" }, false],
      ["x in (a,b)", { x: "b" }, true],
      ["x in ()", { x: "" }, true],
      ["toString", {}, false],
      ["constructor!=x", {}, true],
    ]
    for (const [selector, labels, expected] of rows)
      expect([selector, matches(parseSelector(selector), labels)]).toEqual([selector, expected])
  })

  // Each rule as cause, first and longest wait in seconds.
  const rules: Record<string, string> = {
    "": "",
    "oom=1h": "oom 3600",
    "evicted=30s, deadline=never, unknown=0, any=90": "evicted 30; deadline never; unknown 0; any 90",
    "exit:3=6h": "exit 3-3 21600",
    "exit:1-9=10s..1h": "exit 1-9 10..3600",
    "exit:0-255=5s..5s": "exit 0-255 5",
    "any=1H30M..2D": "any 5400..172800",
    "any=1.5h..2.5h": "any 5400..9000",
    "oom = 1h ,\t any= 2h": "oom 3600; any 7200",
    "oom=1h,any=2h,": "oom 3600; any 7200",
    "oom=1h\nany=2h\n": "oom 3600; any 7200",
    "oom=1h,\r\n\r\n  any=2h  \r\n": "oom 3600; any 7200",
    "oom=1h, any=2h": "oom 3600; any 7200",
    "log:/quota exceeded/=1h": "/quota exceeded/ 3600",
    "log:/Quota/i=10s..1m": "/Quota/i 10..60",
    "log:/a,b=never, any/=1h, any=1s": "/a,b=never, any/ 3600; any 1",
    "log:/a{2,3},/=1h": "/a{2,3},/ 3600",
    "log:/https?:\\/\\/x\\/,/=1h": String.raw`/https?:\/\/x\/,/ 3600`,
    "log:/[/,]+/=1h,oom=1s": "/[/,]+/ 3600; oom 1",
    "log:/[^/\\],]x[/]/i=1h": String.raw`/[^/\],]x[/]/i 3600`,
    "log:/\\[,\\\\/=1h": String.raw`/\[,\\/ 3600`,
    "log:/(?<!no )\\btoken\\b/i=never": String.raw`/(?<!no )\btoken\b/i never`,
    "log:/retry[- ]after:? *(?<wait>[^,;]+)/i=asked..6h": "/retry[- ]after:? *(?<wait>[^,;]+)/i asked..21600",
    "log:/(?<wait>\\d+)/=1h": "/(?<wait>\\d+)/ 3600",
    "exit:3=6h, log:/invalid token/i=never, evicted=30s, oom=0s..1h":
      "exit 3-3 21600; /invalid token/i never; evicted 30; oom 0..3600",
  }
  test.each(Object.entries(rules))("parseRules() reads %j as %j", (text, meaning) => {
    expect(meaningOf(parseRules(text))).toBe(meaning)
    for (const written of [text, ` ${text}\n`, `"${text}"`])
      expect(meaningOf(settings({ RESTART_RULES: written }).restartRules ?? [])).toBe(meaning)
  })

  // The position of each rule that is wrong, and what it should be.
  const RULE = "CAUSE=WAIT, not "
  const wrongRules: Record<string, [at: number, expected: string]> = {
    "oops=1h": [1, RULE],
    "OOM=1h": [1, RULE],
    ",oom=1h": [1, RULE],
    "oom=1h,,any=2h": [8, RULE],
    "any=1h\n,oom=1h": [8, RULE],
    "exit:=1h": [1, RULE],
    "exit:-1=1h": [1, RULE],
    "exit:9-1=1h": [1, "the smaller exit code first"],
    "exit:1-=1h": [1, RULE],
    "exit:3,5=1h": [1, RULE],
    "exit:1234567890=1h": [1, RULE],
    oom: [1, RULE],
    "oom 1h": [1, RULE],
    "oomph=1h": [1, RULE],
    "oom=": [1, RULE],
    "oom==1h": [1, RULE],
    "oom=,any=1h": [1, RULE],
    "oom=-1": [1, RULE],
    "oom=soon": [1, "whole seconds or a duration like 90s"],
    "oom=3651d": [1, "whole seconds or a duration like 90s"],
    "oom=1h..never": [1, "whole seconds or a duration like 90s"],
    "oom=2h..1h": [1, "the shorter wait first"],
    "oom=1.5.1h": [1, RULE],
    "oom=1h..": [1, RULE],
    "oom=1h..2h..3h": [1, RULE],
    "oom=never..1h": [1, "whole seconds or a duration like 90s"],
    "log:/(?<wait>.+)/=asked": [1, "the longest wait too, such as asked..6h"],
    "log:/(?<wait>.+)/=asked..soon": [1, "whole seconds or a duration like 90s"],
    "log:/retry after (.+)/=asked..6h": [1, "asked.. only after a pattern with a group wait"],
    "oom=asked..6h": [1, "asked.. only after a pattern with a group wait"],
    "oom=1h any=2h": [1, RULE],
    "oom=1h;any=2h": [1, RULE],
    "log:a=1h": [1, RULE],
    "log://=1h": [1, RULE],
    "log:/a=1h": [1, RULE],
    "log:/[/=1h": [1, RULE],
    "log:/a\n/=1h": [1, RULE],
    "log:/a\\/=1h": [1, RULE],
    "log:/a/g=1h": [1, RULE],
    "log:/a/ii=1h": [1, RULE],
    "log:/[,/]/=1h, log:/b=1h": [16, RULE],
    "any=1h, log:/\\/,/=1h,wrong": [22, RULE],
  }
  test.each(Object.entries(wrongRules))("parseRules() refuses %j and names the place", (text, [at, expected]) => {
    expect(() => parseRules(text)).toThrow(`at character ${at} write ${expected}`)
  })
  test.each([
    ["log:/(/=1h", 1],
    ["oom=1h, log:/b{2,1}/=1h", 9],
  ])("parseRules() refuses %j by the place and in JavaScript's own words", (text, at) => {
    expect(() => parseRules(text)).toThrow(`at character ${at} Invalid regular expression: `)
  })

  test("readSettings() names RESTART_RULES, the place, what was expected there and what stands there", () => {
    expect(mistakesOf({ RESTART_RULES: "oom=1h, exti:3=2h" })).toEqual([
      'RESTART_RULES cannot be "oom=1h, exti:3=2h": at character 9 write CAUSE=WAIT, not "exti:3=2h": ' +
        "a cause is oom, evicted, deadline, exit:3, exit:1-9, log:/RE/, unknown or any, " +
        "a wait is a duration, 10s..1h, asked..6h or never",
    ])
  })

  test("parseRules() finds the end of any pattern, as JavaScript does", () => {
    const pieces = [..."ab,=/[]^-(){}|.*+?\\ \n", "\\/", "[/]", "[^/]", "\\]", "(?:", "never"]
    always([fc.string({ unit: fc.constantFrom(...pieces), minLength: 1, maxLength: 12 })], (text) => {
      const source = attempt(() => new RegExp(text).source)
      fc.pre(source !== undefined)
      expect(meaningOf(parseRules(`oom=1s,log:/${source}/i=1h..2h, any=never`))).toBe(
        `oom 1; /${source}/i 3600..7200; any never`,
      )
    })
  })

  test("parseRules() reads any rules back that it has read, and refuses all else by its place", () => {
    const causes = fc.constantFrom(
      "oom",
      "evicted",
      "deadline",
      "unknown",
      "any",
      "exit:3",
      "exit:1-9",
      "log:/a,b/",
      "log:/[/]/i",
    )
    const waits = fc.constantFrom("never", "0", "90s", "1h30m", "0s..1h", "10s..1d")
    const good = fc.array(fc.tuple(causes, waits, fc.constantFrom(",", ", ", "\n", " ,\n\n ")), { maxLength: 5 })
    always([good], (all) => {
      const parsed = parseRules(all.map(([cause, wait, end]) => `${cause}=${wait}${end}`).join(""))
      expect(parsed.map(({ text }) => text)).toEqual(all.map(([cause, wait]) => `${cause}=${wait}`))
    })
    const pieces = [
      "oom",
      "any",
      "exit:",
      "3",
      "-",
      "log:/",
      "/",
      "[",
      "]",
      "\\",
      "=",
      "1h",
      "..",
      "never",
      ",",
      "\n",
      " ",
      "é",
    ]
    always([fc.oneof(fc.string({ unit: fc.constantFrom(...pieces) }), fc.string({ unit: "binary" }))], (text) => {
      try {
        const parsed = parseRules(text)
        expect(meaningOf(parseRules(parsed.map((rule) => rule.text).join("\n")))).toBe(meaningOf(parsed))
      } catch (error) {
        const [, at] = /^at character (\d+) \w/.exec(messageOf(error)) ?? []
        expect(Number(at)).toBeGreaterThan(0)
        expect(Number(at)).toBeLessThanOrEqual(text.length + 1)
      }
    })
  })

  test("parseRules() takes time in line with the length of the text", () => {
    for (const piece of ["a", "[", "[a", "[]", "\\", "[\\", "oom=1h,", "oom=1h \t", "exit:1-", "1h..", "\n "])
      for (const before of ["log:/", "oom=1h"])
        expectLinear(48_000, (length) => attempt(() => parseRules(before + piece.repeat(length))))
  })

  const unreached: Record<string, string[]> = {
    "any=1h, exit:3=6h, oom=0s": ["exit:3=6h: any=1h", "oom=0s: any=1h"],
    "exit:1-9=1h, exit:3=6h, exit:9-10=1h": ["exit:3=6h: exit:1-9=1h"],
    "log:/a/=1h, log:/a/i=2h, log:/a/=never": ["log:/a/=never: log:/a/=1h"],
    "oom=1h, evicted=0s, oom=2h": ["oom=2h: oom=1h"],
    "exit:3=1h, exit:1-9=2h, log:/a/=1h, any=1h": [],
  }
  test.each(Object.entries(unreached))(
    "readSettings() warns of rules that are never reached: %s",
    (rules, expected) => {
      const warningsOf = (env: Env) => readSettings({ JOB_NAMES: "a", RESTART_RULES: rules, ...env }).warnings
      const text = (pair: string) =>
        pair.replace(/(.*): (.*)/, "RESTART_RULES: $1 is never reached, for $2 comes before it")
      expect(warningsOf({})).toEqual(expected.map(text))
      const withSkip = warningsOf({ SKIP_DELAY_ON_OOM: "true" }).some((line) =>
        line.includes("for SKIP_DELAY_ON_OOM comes"),
      )
      expect(withSkip).toBe(/oom=/.test(rules))
    },
  )

  test("readSettings() warns of a rule on log text where no log is kept", () => {
    const warningsOf = (RESTART_RULES: string, LOG_LINES: string) =>
      readSettings({ JOB_NAMES: "a", RESTART_RULES, LOG_LINES }).warnings
    expect(warningsOf("oom=0,log:/a,b/i=never", "0")).toEqual([
      "RESTART_RULES has log:/a,b/i=never, but LOG_LINES=0 keeps no log to match",
    ])
    expect([warningsOf("log:/a/=1h", "1"), warningsOf("oom=0", "0"), warningsOf("", "0")]).toEqual([[], [], []])
  })

  test("readSettings() shows each rule in the table at start", () => {
    const { rows } = readSettings({ JOB_NAMES: "a", RESTART_RULES: "exit:3=6h\nlog:/a,b/i=never" })
    expect(rows).toContainEqual({
      variable: "RESTART_RULES",
      value: "exit:3=6h, log:/a,b/i=never",
      from: "RESTART_RULES",
    })
  })

  test("readSettings() has no MAX_RESTARTS unless it is set, and no RESTART_SPACING", () => {
    expect([
      settings().maxRestarts,
      settings({ MAX_RESTARTS: " " }).maxRestarts,
      settings({ MAX_RESTARTS: "0" }).maxRestarts,
    ]).toEqual([undefined, undefined, 0])
    for (const text of ["-1", "1.5", "none", "1000001", "1e3"])
      expect(mistakesOf({ MAX_RESTARTS: text })).toEqual([
        `MAX_RESTARTS cannot be "${text}": write a whole number from 0 to 1000000`,
      ])
    expect([settings().restartSpacingMs, settings({ RESTART_SPACING: "1m30s" }).restartSpacingMs]).toEqual([
      0,
      90 * SECOND,
    ])
    expect(mistakesOf({ RESTART_SPACING: "1.5" })[0]).toStartWith(
      'RESTART_SPACING cannot be "1.5": write whole seconds or a duration',
    )
  })

  // k8s.io/apimachinery/pkg/api/resource/quantity.go; only what can limit memory: above 0, and without a sign.
  const quantities = {
    "1610612736": "1.5Gi|1536Mi|1610612736|1572864Ki|1610612736.0|01.50Gi",
    "512000000": "512M|512000k|512e6|5.12E8|0.512G|.512G|512.M|512000000000m",
    "1000000000": "1e9|1E9|1e+09|1G|1000000000000000u|1000000000000000000n",
    "128974848": "128974848|123Mi|128974848000m",
    "0.5": "500m|0.5|.5|5e-1",
    "1000000000000000000": "1E|1000P|1000000T|1e18",
    "1152921504606846976": "1Ei|1024Pi|1048576Ti",
    refused: `||0|0Gi|0.0|-1Gi|1K|1ki|1KI|1GiB|1GB|1 Gi| 1Gi|.|1..5|1.5.1|e9|Gi|1e|1e1.5
      |1Gi1|1e9999|1_0|1,5Gi|0x10|Infinity|NaN|１Gi
      |1mi|1g|two`,
  }
  test.each(rowsOf(quantities))("quantity() reads as %s bytes, as Kubernetes does: %j", (expected, text) => {
    if (expected !== "refused") return expect(quantity(text)).toBeCloseTo(Number(expected))
    expect(() => quantity(text)).toThrow("write a quantity like 1.5Gi, 512M, 1e9 or 128974848")
  })

  const readme = readFileSync(`${import.meta.dir}/README.md`, "utf8")
  test("SETTINGS and the README's table say the same", () => {
    for (const { variable, default: value, help, olderName } of SETTINGS) {
      const name = `\`${variable}\`${olderName ? ` (else \`${olderName}\`)` : ""}`
      expect(readme).toContain(`| ${name} | ${value ? `\`${value}\`` : "none"} | ${help} |`)
    }
  })
})

describe("NOTIFY_URL", () => {
  test.each([
    ["https://ntfy.sh/topic?template=yes", "https://ntfy.sh/***"],
    ["http://me:pass@gotify.home:8080/message?token=x", "http://gotify.home:8080/***"],
  ])("%s is shown as %s, and kept whole", (url, shown) => {
    const { config, rows } = readSettings({ JOB_NAMES: "a", NOTIFY_URL: ` "${url}"` })
    expect([config.notifyUrl, rows.find(({ variable }) => variable === "NOTIFY_URL")?.value]).toEqual([url, shown])
  })

  test.each(["ntfy.sh/t0pic", "ftp://h/t0pic", "javascript:t0pic"])("%s is refused, and not shown", (url) => {
    const mistakes = mistakesOf({ JOB_NAMES: "a", NOTIFY_URL: url })
    expect(mistakes).toEqual(['NOTIFY_URL cannot be "***": write a URL with http or https'])
  })
})

describe("3 Observed state", () => {
  const skeleton = { template: { metadata: {}, spec: { containers: null } } }
  const phases: Record<string, [Job, string]> = {
    "a Job without conditions": [runningJob(), "running"],
    "Failed=False (B11.1)": [jobWith([{ type: "Failed", status: "False" }]), "running"],
    "Complete with failed pods (B11.2)": [
      jobWith([isTrue("SuccessCriteriaMet"), isTrue("Complete")], { failed: 3 }),
      "succeeded",
    ],
    "SuccessCriteriaMet alone": [jobWith([isTrue("SuccessCriteriaMet")]), "succeeded"],
    "Suspended=True (B11.3)": [{ ...jobWith([isTrue("Suspended")]), spec: { ...spec(), suspend: true } }, "suspended"],
    "failed pods, no conditions (B11.4)": [jobWith(undefined, { failed: 2, active: 1 }), "running"],
    "conditions null (B11.5)": [jobWith(null), "running"],
    "FailureTarget=True": [jobWith([isTrue("FailureTarget", "BackoffLimitExceeded")]), "failing"],
    "Failed=True and Complete=True": [jobWith([isTrue("Failed"), isTrue("Complete")]), "succeeded"],
    "FailureTarget=True and Failed=True": [jobWith([isTrue("FailureTarget"), isTrue("Failed")]), "failed"],
    "no status at all (G13)": [{ metadata: { name: "load-a", uid: "U2" } }, "running"],
    "a bookmark (D05)": [{ metadata: { resourceVersion: "900" }, spec: skeleton, status: {} } as never, "running"],
    nothing: [{}, "running"],
    nulls: [{ metadata: null, spec: null, status: null } as never, "running"],
  }
  test.each(Object.entries(phases))("viewJob() sees %s as it is", (_, [job, phase]) => {
    expect(viewJob(job).phase).toBe(phase as never)
    if (phase !== "failed") expect(decide(viewJob(job), failedBy("unknown"), anyJob(), NOW).do).toBe("leave") // B11
  })

  test("viewJob() takes the failure's instant from lastTransitionTime, else from what is there", () => {
    const at = (condition: object) =>
      viewJob(jobWith([{ ...isTrue("Failed"), lastTransitionTime: undefined, ...condition } as never])).failedAt
    expect(at({ lastTransitionTime: "2026-03-01T11:00:00Z" })).toBe(NOW - HOUR)
    expect(at({ lastTransitionTime: null, lastProbeTime: "2026-03-01T11:00:00Z" })).toBe(NOW - HOUR)
    expect(at({ lastTransitionTime: "0001-01-01T00:00:00Z" })).toBe(Date.parse("2026-03-01T00:00:00Z"))
  })

  test("viewJob() reports the condition's reason and message (A17, B01)", () => {
    for (const reason of ["PodFailurePolicy", "FailedIndexes", "BackoffLimitExceeded", "DeadlineExceeded"])
      expect(viewJob(failedJob({ reason }))).toMatchObject({ reason, message: `because ${reason}` })
  })

  test("viewJob() knows who else answers for a Job (A14, G14)", () => {
    const owned = (kind: string, more: object) =>
      viewJob(
        failedJob({ metadata: { ownerReferences: [{ apiVersion: "x/v1", kind, name: "tick", uid: "U9", ...more }] } }),
      ).manager
    for (const more of [{ controller: true }, { controller: false }, {}])
      expect(owned("CronJob", more)).toBe("it is owned by CronJob tick")
    expect(owned("Workflow", { controller: true })).toBe("it is owned by Workflow tick")
    expect(owned("ConfigMap", {})).toBeUndefined()
    expect(viewJob(failedJob({ spec: { managedBy: "example.test/other" } })).manager).toBe(
      "it is managed by example.test/other",
    )
    expect(viewJob(failedJob({ spec: { managedBy: "kubernetes.io/job-controller" } })).manager).toBeUndefined()
  })

  test("instant() knows year 1, null and nonsense for what they are (B08)", () => {
    expect(["0001-01-01T00:00:00Z", null, undefined, "", "soon"].map(instant)).toEqual(Array(5).fill(undefined))
    expect(instant("2026-03-01T12:00:00.5Z")).toBe(NOW + 500)
  })

  test("viewPod() never throws, whatever is missing", () => {
    for (const nothing of [{}, { metadata: null, spec: null, status: null } as never])
      expect(viewPod(nothing)).toMatchObject({ phase: "Unknown", containers: [], evicted: false })
    expect(
      viewPod({
        metadata: {},
        status: { containerStatuses: null, initContainerStatuses: null, conditions: null } as never,
      }).containers,
    ).toEqual([])
    expect(viewPod({ status: { containerStatuses: [{ name: "worker" } as never] } }).containers[0]).toMatchObject({
      state: "waiting",
      ended: false,
    })
  })

  test("viewPod() takes lastState where a container waits or runs again (C14)", () => {
    const lastState = { terminated: { exitCode: 3, reason: "Error" } }
    for (const state of [{ waiting: { reason: "CrashLoopBackOff" } }, { running: {} }])
      expect(
        pod({ containers: [{ ...exited("worker", 0), state, lastState, restartCount: 3 }] }).containers[0],
      ).toMatchObject({
        exitCode: 3,
        reason: "Error",
        ended: true,
        restarts: 3,
      })
    expect(pod({ containers: [{ ...exited("worker", 5), lastState }] }).containers[0]).toMatchObject({ exitCode: 5 })
  })

  const stopped = exited("worker", 143, { minute: 9 })
  const disrupted = { conditions: [isTrue("DisruptionTarget", "TaintManagerEviction")] }
  const causes: Record<string, [Cause, ...Pods]> = {
    "no pods left (B01)": ["unknown"],
    "code 3": ["exit:3", { containers: [exited("worker", 3)] }],
    "137 alone, which is no OOM": ["exit:137", { containers: [exited("worker", 137, { reason: "Error" })] }],
    "OOMKilled with code 0 and phase Succeeded (B02)": [
      "oom",
      { phase: "Succeeded", containers: [oomKilled("worker", 0)] },
    ],
    "an init container OOMKilled (B04)": [
      "oom",
      { init: [oomKilled("fetch")], containers: [waiting("worker", "PodInitializing")] },
    ],
    "OOMKilled in lastState": [
      "oom",
      { containers: [{ ...running("worker"), lastState: oomKilled("worker").state! }] },
    ],
    "OOMKilled, then another end": [
      "exit:3",
      { containers: [{ ...exited("worker", 3), lastState: oomKilled("worker").state! }] },
    ],
    "the mesh ended well, the worker OOMKilled (B14)": [
      "oom",
      { containers: [exited("mesh", 0), oomKilled("worker")] },
    ],
    "an older pod with code 1 (B14)": [
      "oom",
      { containers: [oomKilled("worker", 137, 9)] },
      { containers: [exited("worker", 1)] },
    ],
    "an older pod OOMKilled": [
      "exit:1",
      { containers: [oomKilled("worker")] },
      { containers: [exited("worker", 1, { minute: 9 })] },
    ],
    "two codes": ["exit:4", { containers: [exited("b", 4, { minute: 5 }), exited("a", 3, { minute: 2 })] }],
    "Evicted, no statuses (B06)": [
      "evicted",
      { phase: "Failed", reason: "Evicted", message: "node was short of disk" },
    ],
    "DisruptionTarget=True": ["evicted", { ...disrupted, containers: [stopped] }],
    "DisruptionTarget=False": [
      "exit:143",
      { conditions: [{ type: "DisruptionTarget", status: "False" }], containers: [stopped] },
    ],
    "NodeLost, still running (B16)": [
      "evicted",
      { deleting: true, phase: "Running", reason: "NodeLost", containers: [running("worker")] },
    ],
    "ContainerStatusUnknown with year 1 (B08)": ["unknown", { containers: [statusUnknown("0001-01-01T00:00:00Z")] }],
    "ContainerStatusUnknown with null (B08)": ["unknown", { containers: [statusUnknown(null)] }],
    "the deadline, no pods (B09)": ["deadline"],
    "the pod's deadline (B09)": ["deadline", { phase: "Failed", reason: "DeadlineExceeded" }],
    "the deadline, never started (B12)": [
      "deadline",
      { phase: "Pending", containers: [waiting("worker", "ImagePullBackOff")] },
    ],
    "the deadline, its pod was stopped": [
      "deadline",
      { deleting: true, phase: "Running", containers: [exited("worker", 137)] },
    ],
    "the deadline, which stopped the pod after one that was OOMKilled": [
      "deadline",
      { createdAt: 0, containers: [oomKilled("worker")] },
      { createdAt: 2, toldAt: 9, containers: [exited("worker", 143, { minute: 9.1 })] },
    ],
    "the deadline, while the pod after one that was OOMKilled is being stopped": [
      "deadline",
      { createdAt: 2, toldAt: 9, phase: "Running", containers: [running("worker")] },
      { createdAt: 0, containers: [oomKilled("worker")] },
    ],
    "the deadline, which stopped the pod after one that was evicted": [
      "deadline",
      { createdAt: 0, phase: "Failed", reason: "Evicted" },
      { createdAt: 2, toldAt: 9, containers: [exited("worker", 143, { minute: 9.1 })] },
    ],
    "the deadline, before another pod followed one that was OOMKilled": [
      "oom",
      { createdAt: 0, containers: [oomKilled("worker")] },
    ],
    "the deadline, which stopped a pod whose worker had been OOMKilled": [
      "oom",
      {
        createdAt: 0,
        toldAt: 9,
        containers: [{ ...exited("worker", 143, { minute: 9.1 }), lastState: oomKilled("worker", 137, 8).state! }],
      },
    ],
    "the deadline, which stopped a pod that ran all the time beside one that was OOMKilled": [
      "oom",
      { createdAt: 0, containers: [oomKilled("worker", 137, 9)] },
      { createdAt: 0, toldAt: 9, containers: [exited("worker", 143, { minute: 9.1 })] },
    ],
    "the deadline, after a pod that followed one that was OOMKilled had succeeded": [
      "oom",
      { createdAt: 0, containers: [oomKilled("worker")] },
      { createdAt: 2, toldAt: 9, phase: "Succeeded", containers: [exited("worker", 0)] },
    ],
    "another pod had failed": [
      "exit:42",
      { deleting: true, containers: [stopped] },
      { containers: [exited("worker", 42)] },
    ],
    "a native sidecar that was stopped later, by TERM (J02)": [
      "exit:3",
      { sidecars: [exited("mesh", 143, { minute: 2 })], containers: [exited("worker", 3)] },
    ],
    "a native sidecar that was killed later (J02)": [
      "exit:3",
      { sidecars: [exited("mesh", 137, { minute: 2, reason: "Error" })], containers: [exited("worker", 3)] },
    ],
    "a native sidecar that had failed before": [
      "exit:3",
      { sidecars: [exited("mesh", 1, { minute: 1 })], containers: [exited("worker", 3, { minute: 5 })] },
    ],
    "a native sidecar OOMKilled beside a worker that failed": [
      "exit:3",
      { sidecars: [oomKilled("mesh", 137, 2)], containers: [exited("worker", 3)] },
    ],
    "a native sidecar alone, while no worker has ended": [
      "exit:7",
      { sidecars: [exited("mesh", 7)], containers: [waiting("worker", "PodInitializing")] },
    ],
    "a pod that succeeded though its sidecar was killed later, and one that failed before": [
      "exit:3",
      { phase: "Succeeded", sidecars: [exited("mesh", 143, { minute: 9 })], containers: [exited("worker", 0)] },
      { containers: [exited("worker", 3)] },
    ],
    "an init container that failed, beside a sidecar that was stopped": [
      "exit:9",
      { init: [exited("fetch", 9)], sidecars: [exited("mesh", 143, { minute: 2 })] },
    ],
    "code 255 by containerd after a power failure (H41)": [
      "unknown",
      { containers: [exited("worker", 255, { reason: "Unknown" })] },
    ],
    "code 255 by the program": ["exit:255", { containers: [exited("worker", 255, { reason: "Error" })] }],
    "code 128 by containerd, which could not start it": [
      "unknown",
      { containers: [exited("worker", 128, { reason: "StartError" })] },
    ],
    "an invented code later than a real one": [
      "exit:3",
      { containers: [exited("worker", 3), exited("helper", 255, { reason: "Unknown", minute: 5 })] },
    ],
    "two workers that run once each": [
      "exit:3",
      { restartPolicy: "Never", containers: [exited("b", 4, { minute: 5 }), exited("a", 3, { minute: 2 })] },
    ],
    "a helper that ended only because its pod was told to stop": [
      "exit:3",
      { toldAt: 2, containers: [exited("worker", 3), exited("helper", 143, { minute: 3 })] },
    ],
    "a worker that was stopped in its next run": [
      "exit:3",
      {
        toldAt: 2,
        containers: [{ ...exited("worker", 143, { minute: 3 }), lastState: exited("worker", 3, { minute: 2 }).state! }],
      },
    ],
    "two pods that are stopped, one of which had failed before": [
      "exit:3",
      { toldAt: 2, containers: [exited("worker", 143, { minute: 3 })] },
      { toldAt: 2, containers: [exited("worker", 3, { minute: 1 })] },
    ],
    "a pod that obeys in the second in which it is told to stop": [
      "exit:3",
      { toldAt: 2, containers: [exited("worker", 143, { minute: 2 })] },
      { toldAt: 2, containers: [exited("worker", 3, { minute: 1 })] },
    ],
    "a pod that is stopped on a node whose clock is behind": [
      "exit:3",
      { toldAt: 2, containers: [exited("worker", 143, { minute: 2 - 5 / 60 })] },
      { toldAt: 2, containers: [exited("worker", 3, { minute: 1 })] },
    ],
    "a pod that is killed on a node whose clock is behind": [
      "exit:3",
      { toldAt: 2, graceSeconds: 2, containers: [exited("worker", 137, { minute: 2 })] },
      { toldAt: 2, graceSeconds: 2, containers: [exited("worker", 3, { minute: 1 })] },
    ],
    "a next run that is stopped on a node whose clock is behind": [
      "exit:3",
      {
        toldAt: 2,
        containers: [{ ...exited("worker", 143, { minute: 2 }), lastState: exited("worker", 3, { minute: 1 }).state! }],
      },
    ],
    "code 143 long before its pod is told to stop": [
      "exit:143",
      { toldAt: 2, containers: [exited("worker", 143, { minute: 2 - 6 / 60 })] },
      { toldAt: 2, containers: [exited("worker", 3, { minute: 1 })] },
    ],
    "a kill in the second in which its pod is told to stop, long before the end of its grace period": [
      "exit:137",
      { toldAt: 2, containers: [exited("worker", 137, { minute: 2 })] },
      { toldAt: 2, containers: [exited("worker", 143, { minute: 2 })] },
    ],
    "an OOM kill in the second in which its pod is told to stop": [
      "oom",
      { toldAt: 2, graceSeconds: 2, containers: [oomKilled("worker", 137, 2)] },
      { toldAt: 2, graceSeconds: 2, containers: [exited("worker", 143, { minute: 2 })] },
    ],
    ...Object.fromEntries(
      [
        ...["NodeAffinity", "OutOfcpu", "OutOfpods", "OutOfmemory", "OutOfexample.test/gpu", "NodePorts", "NodeName"],
        ...["UnexpectedAdmissionError", "NodeShutdown", "Terminated", "Preempting", "TopologyAffinityError"],
        "VolumeAttachmentLimitExceeded",
      ].map((reason): [string, [Cause, ...Pods]] => [
        `a pod that its node did not admit, or ended: ${reason}`,
        ["evicted", { phase: "Failed", reason, message: "Pod was rejected: ..." }],
      ]),
    ),
    "a pod whose node can never run it": ["unknown", { phase: "Failed", reason: "SysctlForbidden" }],
    "code 0 and no time (C11)": [
      "unknown",
      { containers: [exited("worker", 0, { startedAt: null, finishedAt: null })] },
    ],
  }
  test.each(Object.entries(causes))("causeOf() after %s", (name, [cause, ...pods]) => {
    const reason = name.startsWith("the deadline") ? "DeadlineExceeded" : "BackoffLimitExceeded"
    expect(causeOf(viewJob(failedJob({ reason })), pods.map(pod))).toBe(cause)
  })

  test("failureOf() a pod that the deadline stopped has its lines, and none of an older one's kills", () => {
    const killed = pod({ name: "p1", createdAt: 0, containers: [oomKilled("worker")] })
    const stopped = pod({ name: "p2", createdAt: 2, toldAt: 9, containers: [exited("worker", 143, { minute: 9.1 })] })
    const logs = new Map(["p1", "p2"].map((name) => [`uid-${name}/worker`, { lines: [`log of ${name}`] }]))
    const failure = failureOf(viewJob(failedJob({ reason: "DeadlineExceeded" })), {
      pods: [killed, stopped],
      logs,
      morePods: 0,
    })
    expect(failure).toEqual({ cause: "deadline", lines: ["log of p2"], killed: [] })
  })

  test("causeOf() does not depend on the order of the pods, nor changes them", () => {
    const [first, second] = [{ containers: [exited("worker", 1)] }, { containers: [oomKilled("worker", 137, 5)] }]
    const views = [first, second, { containers: [exited("worker", 3, { minute: 7 })] }].map((p, i) =>
      pod({ ...p, name: `p${i}` }),
    )
    always([fc.shuffledSubarray(views, { minLength: 3 })], (shuffled) => {
      const before = structuredClone(shuffled)
      expect(causeOf(viewJob(failedJob()), shuffled)).toBe("exit:3")
      expect(shuffled).toEqual(before)
    })
  })
})

describe("4 Policy", () => {
  const left: Record<string, [Job, string]> = {
    runs: [runningJob(), "it is running"],
    succeeded: [jobWith([isTrue("Complete")]), "it has succeeded"],
    "succeeded with an OOMKilled pod (B02)": [
      jobWith([isTrue("SuccessCriteriaMet"), isTrue("Complete")]),
      "it has succeeded",
    ],
    "is suspended (G14)": [{ ...runningJob(), spec: { ...spec(), suspend: true } }, "it is suspended"],
    "is failing": [jobWith([isTrue("FailureTarget")]), "it is failing: its pods are being stopped"],
    "failed and is being deleted (A10)": [failedJob({ ago: DAY, metadata: deleted }), "it is being deleted"],
    "is owned by a CronJob (A14)": [
      failedJob({ ago: DAY, metadata: { ownerReferences: [cronJob()] } }),
      "it is owned by CronJob tick",
    ],
    "is managed by another (G14)": [
      failedJob({ ago: DAY, spec: { managedBy: "other.test/x" } }),
      "it is managed by other.test/x",
    ],
    "is not selected": [failedJob({ ago: DAY, name: "load-b" }), "it is not selected"],
  }
  test.each(Object.entries(left))("decide() leaves a Job alone that %s", (_, [job, because]) => {
    const healthy = !/owned|managed/.test(because)
    expect(decide(viewJob(job), failedBy("oom"), settings({ SKIP_DELAY_ON_OOM: "true" }), NOW)).toEqual({
      do: "leave",
      because,
      healthy,
    })
  })

  test("decide() waits until the delay has passed, and not a millisecond longer", () => {
    const [config, job] = [settings({ RESTART_DELAY: "1h" }), viewJob(failedJob())]
    const because = "RESTART_DELAY 1h"
    expect(decide(job, failedBy("exit:3"), config, NOW)).toEqual({ do: "wait", dueAt: NOW + HOUR, because })
    expect(decide(job, failedBy("exit:3"), config, NOW + HOUR - 1)).toEqual({ do: "wait", dueAt: NOW + HOUR, because })
    expect(decide(job, failedBy("exit:3"), config, NOW + HOUR)).toEqual({ do: "restart", dueAt: NOW + HOUR, because })
    expect(decide(job, failedBy("exit:3"), settings({ RESTART_DELAY: "0" }), NOW).do).toBe("restart")
    const never = decide(job, failedBy("exit:3"), settings({ RESTART_DELAY: "9999999" }), NOW + 2 ** 31) // G01
    expect(never).toMatchObject({ do: "wait", dueAt: NOW + 9_999_999_000 })
  })

  test("decide() restarts a Job of a queue as any other, and leaves its suspend field as it is (G14)", () => {
    const job = failedJob({
      ago: DAY,
      metadata: { labels: { "kueue.x-k8s.io/queue-name": "q1" } },
      spec: { suspend: false },
    })
    expect(decide(viewJob(job), failedBy("unknown"), settings(), NOW).do).toBe("restart")
    expect(replacementFor(job)).toMatchObject({
      metadata: { labels: { "kueue.x-k8s.io/queue-name": "q1" } },
      spec: { suspend: false },
    })
  })

  test("decide() restarts at once after an OOM kill where SKIP_DELAY_ON_OOM says so, then later and later", () => {
    const config = settings({ SKIP_DELAY_ON_OOM: "true", RESTART_DELAY: "5m" })
    let job = failedJob()
    const waits = Array.from({ length: 8 }, () => {
      const decision = decide(viewJob(job), failedBy("oom"), config, NOW)
      job = failedJob({ metadata: { annotations: bookkeepingFor(viewJob(job), failedBy("oom"), config) } })
      return !("dueAt" in decision) ? decision : [(decision.dueAt - NOW) / SECOND, decision.because.replace(/.*, /, "")]
    })
    expect(waits).toEqual(
      [0, 10, 20, 40, 80, 160, 300, 300].map((s, i) => [s, i === 0 ? "rule oom=0s..5m" : `failure ${i + 1} in a row`]),
    )
    // Another cause.
    expect(decide(viewJob(job), failedBy("exit:1"), config, NOW)).toMatchObject({ dueAt: NOW + 5 * MINUTE })
    expect(decide(viewJob(job), failedBy("oom"), settings({ RESTART_DELAY: "5m" }), NOW)).toMatchObject({
      dueAt: NOW + 5 * MINUTE,
    })
    expect(bookkeepingFor(viewJob(job), failedBy("exit:1"), settings())).toMatchObject({
      [`${PREFIX}restarts`]: "9",
      [`${PREFIX}restarts-of-cause`]: "1",
    })
  })

  test("decide() never lets the wait after OOM kills pass RESTART_DELAY or 5m, whatever the annotation says", () => {
    const odd = fc.constantFrom("1e9", "-1", "NaN", "9".repeat(400))
    const counts = fc.oneof(fc.nat(40).map(String), fc.maxSafeNat().map(String), fc.string(), odd)
    always([counts, fc.nat(3650 * 86_400)], (text, seconds) => {
      const annotations = {
        [`${PREFIX}restarts-of-cause`]: text,
        [`${PREFIX}last-cause`]: "oom",
        [`${PREFIX}restarts`]: text,
      }
      const view = viewJob(failedJob({ metadata: { annotations } }))
      const decision = decide(
        view,
        failedBy("oom"),
        settings({ SKIP_DELAY_ON_OOM: "true", RESTART_DELAY: `${seconds}s` }),
        NOW,
      )
      const waitMs = !("dueAt" in decision) ? Number.NaN : decision.dueAt - NOW
      const kills = /^\d{1,9}$/.test(text) ? Number(text) : 0
      const most = Math.max(5 * MINUTE, seconds * SECOND)
      expect(waitMs).toBe(kills === 0 ? 0 : Math.min(most, 10 * SECOND * 2 ** (kills - 1)))
      for (const count of [0, 1])
        expect(Object.values(bookkeepingFor(view, failedBy("oom"), settings()))[count]).toBe(String(kills + 1))
    })
  })

  test("decide() restarts failed Jobs only, never before the failure plus the delay, and always says the same", () => {
    always([anyFailure(), fc.integer({ min: -2 * DAY, max: 2 * DAY }), fc.nat(2 * 86_400)], (job, sinceMs, delay) => {
      const [view, config, now] = [viewJob(job), settings({ RESTART_DELAY: String(delay) }), NOW + sinceMs]
      const decision = decide(view, failedBy("exit:1"), config, now)
      expect(decide(viewJob(structuredClone(job)), failedBy("exit:1"), config, now)).toEqual(decision)
      if (!("dueAt" in decision)) return expect(view.phase === "failed" && !view.deleting && !view.manager).toBe(false)
      expect([view.phase, view.deleting, view.manager]).toEqual(["failed", false, undefined])
      expect(decision.dueAt).toBe(NOW + delay * SECOND)
      expect(decision.do).toBe(now >= NOW + delay * SECOND ? "restart" : "wait")
    })
  })

  test("decide() waits as long with a TTL as without (A12)", () => {
    always([fc.nat(3 * 3_600), fc.nat(3 * 3_600), fc.nat(3 * 3_600)], (ttl, wait, passed) => {
      const config = settings({ RESTART_RULES: `exit:1=${wait}` })
      const at = (spec: object) =>
        decide(viewJob(failedJob({ spec })), failedBy("exit:1"), config, NOW + passed * SECOND)
      expect(at({ ttlSecondsAfterFinished: ttl })).toEqual(at({}))
    })
  })

  test("failureOf() has the lines of the termination message, those of the container that failed last of all", () => {
    const message = "\u001b[31mRetry-After: 25\u001b[0m\nbye\n"
    const last = pod({ containers: [exited("worker", 3, { message }), exited("mesh", 0, { message: "mesh" })] })
    const logs = new Map(["worker", "mesh"].map((name) => [`uid-p/${name}`, { lines: [`${name} log`] }]))
    const { lines } = failureOf(viewJob(failedJob()), { pods: [last], logs, morePods: 0 })
    expect(lines).toEqual(["mesh log", "mesh", "worker log", "Retry-After: 25", "bye"])
  })

  test.each(["StartError", "ContainerStatusUnknown", "Unknown", "ContainerCannotRun"])(
    "failureOf() does not take what a runtime says of a %s for the program's words",
    (reason) => {
      const failed = exited("worker", 128, { reason, message: "exec: not found" })
      const backOff = { ...waiting("mesh", "CrashLoopBackOff", "back-off 5m0s"), lastState: exited("mesh", 1).state }
      const last = pod({ containers: [failed, backOff as Container] })
      expect(failureOf(viewJob(failedJob()), { pods: [last], logs: new Map(), morePods: 0 }).lines).toEqual([])
    },
  )

  const deletions: Record<
    string,
    [spec: object, deletedAfter: number | undefined, dueAfter: number | undefined, boolean]
  > = {
    "without a deletionTimestamp, as by kubectl delete": [{ ttlSecondsAfterFinished: 600 }, undefined, 3_600, true],
    "11 s before its TTL": [{ ttlSecondsAfterFinished: 600 }, 589, 3_600, true],
    "10 s before its TTL": [{ ttlSecondsAfterFinished: 600 }, 590, 3_600, false],
    "9 s before its TTL": [{ ttlSecondsAfterFinished: 600 }, 591, 3_600, false],
    "after its TTL": [{ ttlSecondsAfterFinished: 600 }, 700, 3_600, false],
    "at once, with a TTL of 0": [{ ttlSecondsAfterFinished: 0 }, 0, 3_600, false],
    "11 s before it is due, which is before its TTL": [{ ttlSecondsAfterFinished: 600 }, 289, 300, true],
    "9 s before it is due, which is before its TTL: by us": [{ ttlSecondsAfterFinished: 600 }, 291, 300, false],
    "after its TTL, without an intent": [{ ttlSecondsAfterFinished: 600 }, 600, undefined, false],
    "long before it is due, without a TTL": [{}, 5, 3_600, true],
    "when it is due, without a TTL: by us": [{}, 3_600, 3_600, false],
    "whenever, without a TTL or an intent": [{}, 99_999, undefined, true],
  }
  test.each(Object.entries(deletions))(
    "wasDeletedByPerson() of a Job deleted %s (A13)",
    (_, [spec, deletedAfter, dueAfter, expected]) => {
      const at = (seconds: number) => NOW + seconds * SECOND
      const metadata = deletedAfter === undefined ? {} : { deletionTimestamp: instantText(at(deletedAfter)) }
      const intent = dueAfter === undefined ? undefined : { dueAt: at(dueAfter), version: "6" }
      expect(wasDeletedByPerson(failedJob({ spec, metadata: { ...metadata } }), intent)).toBe(expected)
    },
  )

  test("wasDeletedByPerson() counts the shorter TTL of a Job that was edited while it went", () => {
    const metadata = { deletionTimestamp: instantText(NOW + 30 * SECOND) }
    const edited = failedJob({ spec: { ttlSecondsAfterFinished: 600 }, metadata })
    const intent = { dueAt: NOW + HOUR, version: "6" }
    expect([wasDeletedByPerson(edited, intent), wasDeletedByPerson(edited, intent, 30 * SECOND)]).toEqual([true, false])
  })

  test("wasDeletedByPerson() believes who wrote an intent after the Job was gone: its TTL took it", () => {
    const metadata = { deletionTimestamp: instantText(NOW + 30 * SECOND), resourceVersion: "9" }
    const edited = failedJob({ spec: { ttlSecondsAfterFinished: 600 }, metadata })
    const results = ["8", "10"].map((version) => wasDeletedByPerson(edited, { dueAt: NOW + HOUR, version }))
    expect(results).toEqual([true, false])
    expect(wasDeletedByPerson(failedJob({}), { dueAt: NOW + HOUR, version: "10" })).toBe(true)
  })

  const threats: Record<string, [spec: object, dueAfter: number, boolean]> = {
    "no TTL": [{}, 3_600, false],
    "a TTL before it is due": [{ ttlSecondsAfterFinished: 600 }, 3_600, true],
    "a TTL of 0": [{ ttlSecondsAfterFinished: 0 }, 0, true],
    "a TTL within a minute after it is due": [{ ttlSecondsAfterFinished: 3_660 }, 3_600, true],
    "a TTL more than a minute after it is due": [{ ttlSecondsAfterFinished: 3_661 }, 3_600, false],
  }
  test.each(Object.entries(threats))("isThreatenedByTtl() with %s", (_, [spec, dueAfter, expected]) =>
    expect(isThreatenedByTtl(viewJob(failedJob({ spec })), NOW + dueAfter * SECOND)).toBe(expected),
  )
  test("isThreatenedByTtl() is for a Job that has failed", () =>
    expect(isThreatenedByTtl(viewJob({ ...runningJob(), spec: { ...spec(), ttlSecondsAfterFinished: 0 } }), NOW)).toBe(
      false,
    ))

  test("failureOf() has the lines and the killed containers of the last failed attempt, init ones too", () => {
    const older = pod({ name: "p0", containers: [oomKilled("other")] })
    const last = pod({
      name: "p1",
      init: [oomKilled("fetch", 137, 5)],
      containers: [exited("mesh", 0, { minute: 6 }), oomKilled("worker", 0, 7)],
    })
    const logs = new Map([
      ["uid-p0/other", { lines: ["older"] }],
      ["uid-p1/worker", { lines: ["one", "two"] }],
      ["uid-p1/mesh", { lines: ["three"] }],
    ])
    const failure = failureOf(viewJob(failedJob()), { pods: [last, older], logs, morePods: 0 })
    expect(failure).toEqual({ cause: "oom", lines: ["three", "one", "two"], killed: ["fetch", "worker"] })
    expect(failureOf(viewJob(failedJob()), { pods: [], logs, morePods: 0 })).toEqual(failedBy("unknown"))
  })

  const order = String.raw`exit:3=1s, exit:2-9=2s, log:/invalid (token|key)\b/i=never, log:/^quota$/=3s,
    oom=4s, evicted=5s, deadline=6s, unknown=7s`
  const taken: Record<string, [WhatFailed, string]> = {
    "the first that matches": [failedBy("exit:3"), "exit:3=1s"],
    "a range": [failedBy("exit:4"), "exit:2-9=2s"],
    "the end of a range": [failedBy("exit:9"), "exit:2-9=2s"],
    "no rule for a code beside the range": [failedBy("exit:10"), "RESTART_DELAY 1h"],
    "no rule for a code that begins like another": [failedBy("exit:33"), "RESTART_DELAY 1h"],
    oom: [failedBy("oom"), "oom=4s"],
    evicted: [failedBy("evicted"), "evicted=5s"],
    deadline: [failedBy("deadline"), "deadline=6s"],
    unknown: [failedBy("unknown"), "unknown=7s"],
    "any line of the log": [failedBy("oom", ["one", "quota", "three"]), "log:/^quota$/=3s"],
    "a pattern for each line alone": [failedBy("oom", ["quota exceeded", "my quota"]), "oom=4s"],
    "a pattern without regard to case, flag i": [
      failedBy("exit:1", ["INVALID KEY given"]),
      String.raw`log:/invalid (token|key)\b/i=never`,
    ],
    "the case where there is no flag": [failedBy("oom", ["QUOTA"]), "oom=4s"],
    "the code before the log, as they stand": [failedBy("exit:3", ["invalid token"]), "exit:3=1s"],
  }
  test.each(Object.entries(taken))("decide() takes of the rules %s", (_, [failure, rule]) => {
    expect(because(decide(viewJob(failedJob()), failure, settings({ RESTART_RULES: order }), NOW))).toBe(
      rule.startsWith("RESTART") ? rule : `rule ${rule}`,
    )
  })

  test("decide() asks no rule where there is none, and any for all", () => {
    for (const cause of ["oom", "evicted", "deadline", "exit:137", "unknown"] as Cause[]) {
      expect(because(decide(viewJob(failedJob()), failedBy(cause), settings(), NOW))).toBe("RESTART_DELAY 1h")
      expect(because(decide(viewJob(failedJob()), failedBy(cause), settings({ RESTART_RULES: "any=1s" }), NOW))).toBe(
        "rule any=1s",
      )
    }
  })

  test("decide() puts SKIP_DELAY_ON_OOM before all rules, as oom=0s..RESTART_DELAY", () => {
    const config = settings({ SKIP_DELAY_ON_OOM: "true", RESTART_RULES: "oom=never, any=7s", RESTART_DELAY: "2h" })
    expect(decide(viewJob(failedJob()), failedBy("oom"), config, NOW)).toEqual({
      do: "restart",
      dueAt: NOW,
      because: "rule oom=0s..2h",
    })
    expect(because(decide(viewJob(failedJob()), failedBy("exit:1"), config, NOW))).toBe("rule any=7s")
    const own = viewJob(annotated({ "restart-delay": "5m" }))
    expect(because(decide(own, failedBy("oom"), config, NOW))).toBe("rule oom=0s..5m")
    expect(because(decide(viewJob(annotated({ "restart-rules": "any=1s" })), failedBy("oom"), config, NOW))).toBe(
      "rule any=1s",
    )
  })

  test("a line of the log is cut in its middle before a rule sees it, and its secrets are masked", () => {
    const { lines } = tailOf(`BEGIN${"x".repeat(999)}MIDDLE${"x".repeat(999)}END\ninvalid token=abc`, 20)
    const isSeen = (rule: string) =>
      because(
        decide(viewJob(failedJob()), failedBy("exit:1", lines), settings({ RESTART_RULES: `${rule}=1s` }), NOW),
      ) === `rule ${rule}=1s`
    expect(["log:/^BEGIN/", "log:/xEND$/", "log:/invalid token/"].map(isSeen)).toEqual([true, true, true])
    expect(["log:/MIDDLE/", "log:/abc/"].map(isSeen)).toEqual([false, false])
  })

  // What a program may print, as seconds from a failure at 12:00:00 UTC on 2026-03-01, a Sunday; undefined: not a time.
  const askedWaits: Record<string, number | undefined> = {
    "25": 25,
    " 25 ": 25,
    "0": 0,
    "2.5": 2.5,
    '"120"': 120,
    "120.": 120,
    "25s": 25,
    "25 s)": 25,
    "1m30s": 90,
    "1h 30m": 5_400,
    "1.5h": 5_400,
    "250ms": 0.25,
    "90 seconds": 90,
    "2 minutes, 5 seconds": 125,
    "1 hour and 1 minute": 3_660,
    "1 Day": 86_400,
    "Sun, 01 Mar 2026 12:02:00 GMT": 120,
    "Sunday, 01-Mar-26 12:02:00 GMT": 120,
    "Sun Mar  1 12:02:00 2026": 120,
    "Sun, 01 Mar 2026 11:00:00 GMT": -3_600,
    "2026-03-01T12:02:00Z": 120,
    "2026-03-01T12:02": 120,
    "2026-03-01 12:02:00.500000+00:00": 120.5,
    "2026-03-01T14:02:00+0200": 120,
    "2026-03-01 12:02:00 UTC": 120,
    "2026-03-01 13:02:00 +01": 120,
    "2026-03-01T13:02:00+01": 120,
    "2026-03-01 07:02:00-05": 120,
    "Sun, 01 Mar 2026 13:02:00 GMT+0100": 120,
    "Sun, 1 March 2026 12:02 PM UTC": 120,
    "Sun Mar  1 12:02:00 UTC 2026": 120,
    "Sun Mar  1 13:02:00 2026 +0100": 120,
    "2026-03-01 12:02:00 EST": undefined,
    "Sun, 01 Mar 2026 12:02:00 PST": undefined,
    "Sun Mar  1 12:02:00 CET 2026": undefined,
    "01 Mar 2026 12:02 PM MST": undefined,
    "2026-03-01T12:02:00 Europe/Berlin": undefined,
    "2026-03-01T12:02:00A": undefined,
    "2026-03-01 12:02:00 UTC+1": undefined,
    "2026-03-01 12:02:00 +1": undefined,
    "2026-03-01 12:02:00 +01:0": undefined,
    "2026-03-01 12:02:00 +01:00 CET": undefined,
    "1772366520": 120,
    "1772366520.5": 120.5,
    "": undefined,
    soon: undefined,
    "-5": undefined,
    "5 apples": undefined,
    "1h2x": undefined,
    "12:30": undefined,
    "May 1 10:30": undefined,
    "May 1 10:30 +0200": undefined,
    "2026-13-01T12:00:00Z": undefined,
    "Sun, 41 Mar 2026 12:02:00 GMT": undefined,
    NaN: undefined,
    "9e99": undefined,
  }
  test.each(Object.entries(askedWaits))("readAskedWait() reads %j as %p seconds", (text, seconds) => {
    expect(readAskedWait(text, NOW)).toBe(seconds === undefined ? undefined : seconds * SECOND)
  })

  test("readAskedWait() takes a text of any kind, and is a number or undefined", () => {
    always([fc.oneof(fc.string(), fc.string({ unit: "binary" }))], (text) => {
      const wait = readAskedWait(text, NOW)
      if (wait !== undefined) expect(Number.isFinite(wait)).toBe(true)
    })
    for (const piece of ["1h ", "1", "1h", "1 and ", "Sun, ", "2026-"])
      expectLinear(40_000, (length) => readAskedWait(piece.repeat(length / 4), NOW))
  })

  const ASKED = "log:/retry[- ]after:? *(?<wait>[^,;]+)/i=asked..1h"
  const askedLines: Record<string, [lines: string[], seconds: number, because: string]> = {
    "seconds, from the failure": [["Retry-After: 25"], 25, 'asked for "25": 25s after the failure'],
    "the last line that matches": [
      ["Retry-After: 5", "retry after 1m30s; bye", "end"],
      90,
      'asked for "1m30s": 1m30s after the failure',
    ],
    "an HTTP date, though the pattern ends at its comma": [
      ["Retry-After: Sun, 01 Mar 2026 12:02:00 GMT, then"],
      120,
      'asked for "Sun, 01 Mar 2026 12:02:00 GMT": 2m after the failure',
    ],
    "a date that has passed": [
      ["Retry-After: Sun, 01 Mar 2026 11:00:00 GMT"],
      0,
      'asked for "Sun, 01 Mar 2026 11:00:00 GMT": 0s after the failure',
    ],
    "more than the maximum": [["Retry-After: 2h"], 3_600, 'asked for "2h": 1h after the failure, the maximum'],
    "what is no time": [
      ["Retry-After: soon"],
      3_600,
      'asked for "soon", which is not a time: waiting the maximum of 1h',
    ],
  }
  test.each(Object.entries(askedLines))(
    "decide() waits as long as the program asks for: %s",
    (_, [lines, seconds, why]) => {
      const decision = decide(viewJob(failedJob()), failedBy("exit:1", lines), settings({ RESTART_RULES: ASKED }), NOW)
      expect([waitOf(decision), because(decision)]).toEqual([seconds, `rule ${ASKED}: ${why}`])
    },
  )

  test.each(["0", "20ms", "0.001", "Sun, 01 Mar 2020 12:00:00 GMT", "1500000000"])(
    "decide() pauses ever longer where the program asks for hardly any time, again and again: %s",
    (text) => {
      const failure = failedBy("exit:1", [`Retry-After: ${text}`])
      const lives = livesOf(stored(failedJob(), "U1"), Array(5).fill(failure), settings({ RESTART_RULES: ASKED }))
      expect(lives.map(waitOf).map(Math.floor)).toEqual([0, 10, 20, 40, 80])
      expect(because(lives[2]!)).toEndWith(": 20s after the failure")
    },
  )

  test("decide() waits the maximum where the group named wait has captured nothing", () => {
    const RESTART_RULES = "log:/quota(?: for (?<wait>.+))?/=asked..1h"
    const decision = decide(viewJob(failedJob()), failedBy("exit:1", ["quota"]), settings({ RESTART_RULES }), NOW)
    expect(waitOf(decision)).toBe(3_600)
  })

  test("decide() takes a failure of the future for one of the moment in which it was seen (J09)", () => {
    const view = viewJob(failedJob())
    const seen = (aheadMs: number) => ({ ...failedBy("exit:1"), seenAt: NOW - aheadMs })
    const config = settings({ RESTART_DELAY: "5" })
    expect(decide(view, seen(HOUR), config, NOW - HOUR)).toMatchObject({ do: "wait", dueAt: NOW - HOUR + 5 * SECOND })
    expect(decide(view, seen(HOUR), config, NOW - HOUR + 5 * SECOND)).toMatchObject({ do: "restart" })
    expect(decide(view, seen(-HOUR), config, NOW)).toMatchObject({ dueAt: NOW + 5 * SECOND })
    const wanted = viewJob(failedJob({ metadata: { annotations: { [`${PREFIX}restart-now`]: "1" } } }))
    expect(decide(wanted, seen(HOUR), config, NOW - HOUR)).toMatchObject({ do: "restart", dueAt: NOW - HOUR })
  })

  test("decide() pauses after OOM kills though RESTART_DELAY is 0 (J13)", () => {
    const config = settings({ SKIP_DELAY_ON_OOM: "true", RESTART_DELAY: "0" })
    const lives = livesOf(stored(failedJob(), "U1"), Array(8).fill(failedBy("oom")), config)
    expect(lives.map(waitOf)).toEqual([0, 10, 20, 40, 80, 160, 300, 300])
  })

  const growths: Record<string, number[]> = {
    "any=0s..1h": [0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600],
    "any=10s..1h": [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600],
    "any=45m..1h": [2700, 3600, 3600],
    "any=7s": [7, 7, 7],
    "any=0": [0, 0, 0],
    "any=0..5s": [0, 5, 5],
    "exit:1-9=1s..1d": [1, 2, 4, 8],
    "exit:3=1s..1d": [1, 2, 4, 8],
    "log:/quota/=1s..1d": [1, 2, 4, 8],
  }
  test.each(Object.entries(growths))(
    "decide() waits under %s, failure after failure: %j seconds",
    (RESTART_RULES, waits) => {
      const [config, failure] = [settings({ RESTART_RULES }), failedBy("exit:3", ["quota"])]
      expect(
        livesOf(
          stored(failedJob(), "U1"),
          waits.map(() => failure),
          config,
        ).map(waitOf),
      ).toEqual(waits)
    },
  )

  test("decide() lets a wait grow only with failures in a row of the rule's cause", () => {
    const config = settings({ RESTART_RULES: "exit:1-9=10s..1h, oom=1s..1h", RESTART_DELAY: "5m" })
    const causes: Cause[] = ["exit:1", "exit:2", "oom", "oom", "exit:1", "exit:9", "evicted", "exit:1"]
    const lives = livesOf(
      stored(failedJob(), "U1"),
      causes.map((cause) => failedBy(cause)),
      config,
    )
    expect(lives.map(waitOf)).toEqual([10, 20, 1, 2, 10, 20, 300, 10])
    expect(because(lives[1])).toBe("rule exit:1-9=10s..1h, failure 2 in a row")
  })

  test("decide() never lets a wait shrink with the failures or pass its longest, whatever the annotations say", () => {
    const texts = fc.oneof(
      fc.nat().map(String),
      fc.maxSafeNat().map(String),
      fc.string(),
      fc.constantFrom("-1", "1e9", "9".repeat(400)),
    )
    const seconds = fc.nat(3650 * 86_400)
    always([seconds, seconds, texts, texts, fc.nat(2_000)], (a, b, restarts, ofCause, n) => {
      const [from, to] = [Math.min(a, b), Math.max(a, b)]
      const config = settings({ RESTART_RULES: `any=${from}..${to}` })
      const wait = (marks: Record<string, string>) =>
        waitOf(decide(viewJob(annotated({ "last-cause": "oom", ...marks })), failedBy("oom"), config, NOW))
      for (const s of [
        wait({ restarts, "restarts-of-cause": ofCause }),
        wait({ restarts: "1", "restarts-of-cause": String(n) }),
      ]) {
        expect(s).toBeGreaterThanOrEqual(from)
        expect(s).toBeLessThanOrEqual(to)
      }
      const [now, then] = [n, n + 1].map((count) => wait({ restarts: "1", "restarts-of-cause": String(count) })) as [
        number,
        number,
      ]
      expect(then).toBeGreaterThanOrEqual(now)
    })
  })

  test("decide() is never earlier nor later than its rule says, wherever the clock stands: DST, leap days", () => {
    const days = [
      "2028-02-28T23:59:59Z",
      "2028-02-29T12:00:00Z",
      "2026-03-29T00:59:59Z",
      "2026-10-25T00:59:59Z",
      "2026-12-31T23:59:59Z",
    ]
    const failures = fc.oneof(
      fc.constantFrom(...days.map((day) => Date.parse(day))),
      fc.integer({ min: 1, max: 4_000_000_000 }).map((s) => s * SECOND),
    )
    const looks = fc.array(fc.tuple(fc.nat(2 * HOUR), fc.constantFrom(0, 0, -HOUR, HOUR)), {
      minLength: 1,
      maxLength: 20,
    })
    always([failures, fc.nat(2 * 86_400), looks], (failedAt, waitS, steps) => {
      const [view, config] = [
        viewJob(failedJob({ ago: NOW - failedAt })),
        settings({ RESTART_RULES: `exit:3=${waitS}` }),
      ]
      const dueAt = failedAt + waitS * SECOND
      const at = (now: number) => decide(view, failedBy("exit:3"), config, now)
      let now = failedAt
      for (const [passed, moved] of steps) {
        now += passed + moved
        expect(at(now)).toEqual({ do: now < dueAt ? "wait" : "restart", dueAt, because: `rule exit:3=${waitS}` })
      }
      expect([at(dueAt - 1).do, at(dueAt).do]).toEqual(["wait", "restart"])
    })
  })

  const never = { "restart-rules": "any=never" }
  const [now, done, atLimit] = [
    { "restart-now": "1" },
    { "restart-now-done": "1" },
    { restarts: "3", "max-restarts": "3" },
  ]
  const asked: Record<string, [Record<string, string>, string]> = {
    never: [never, "give up: rule any=never"],
    "a limit that is reached": [atLimit, "give up: it was restarted 3 times in a row without a success"],
    "a limit that is reached and never": [
      { ...atLimit, ...never },
      "give up: it was restarted 3 times in a row without a success",
    ],
    "a limit that is not reached": [{ ...atLimit, restarts: "2" }, "wait: RESTART_DELAY 1h"],
    "a limit of 0": [{ "max-restarts": "0" }, "give up: it was restarted 0 times in a row without a success"],
    "a limit, with a count that is none": [{ ...atLimit, restarts: "many" }, "wait: RESTART_DELAY 1h"],
    "restart-now": [now, `restart: its annotation ${PREFIX}restart-now asks for it`],
    "restart-now and never": [{ ...now, ...never }, `restart: its annotation ${PREFIX}restart-now asks for it`],
    "restart-now and a limit that is reached": [
      { ...now, ...atLimit },
      `restart: its annotation ${PREFIX}restart-now asks for it`,
    ],
    "restart-now by a new value": [
      { ...done, "restart-now": "2" },
      `restart: its annotation ${PREFIX}restart-now asks for it`,
    ],
    "restart-now by a value that was done": [{ ...now, ...done }, "wait: RESTART_DELAY 1h"],
    "restart-now by a value that was done, and a limit that is reached": [
      { ...now, ...done, ...atLimit },
      "give up: it was restarted 3 times in a row without a success",
    ],
    "a pause": [{ paused: "true" }, `leave: its annotation ${PREFIX}paused is true`],
    "a pause as people write it": [{ paused: ' "True"\n' }, `leave: its annotation ${PREFIX}paused is true`],
    "a pause and restart-now": [{ paused: "true", ...now }, `leave: its annotation ${PREFIX}paused is true`],
    "a pause, never and a limit that is reached": [
      { paused: "true", ...never, ...atLimit },
      `leave: its annotation ${PREFIX}paused is true`,
    ],
    "no pause": [{ paused: "false" }, "wait: RESTART_DELAY 1h"],
    "a pause by a wrong word": [{ paused: "soon" }, "wait: RESTART_DELAY 1h"],
  }
  test.each(Object.entries(asked))("decide() on a Job that is asked for %s", (_, [annotations, expected]) => {
    const decision = decide(viewJob(annotated(annotations)), failedBy("exit:1"), settings(), NOW + MINUTE)
    expect(`${decision.do}: ${because(decision)}`).toBe(expected)
    if (decision.do === "leave") expect(decision.healthy).toBe(false)
  })

  test("decide() asks paused and restart-now of a failed Job only", () => {
    const at = (job: Job, annotations: Record<string, string>) =>
      because(
        decide(
          viewJob({ ...job, metadata: { ...job.metadata, annotations: prefixed(annotations) } }),
          failedBy("oom"),
          settings(),
          NOW,
        ),
      )
    expect(at(runningJob(), now)).toBe("it is running")
    expect(at(jobWith([isTrue("FailureTarget")]), now)).toBe("it is failing: its pods are being stopped")
    expect(at(jobWith([isTrue("Complete")]), { ...now, paused: "true" })).toBe("it has succeeded")
    expect(at(failedJob({ metadata: deleted }), now)).toBe("it is being deleted")
  })

  test("decide() begins anew at its limit after a change by the owner, but never stays never", () => {
    const changed = { ...failedBy("exit:1"), changed: true }
    expect(decide(viewJob(annotated(atLimit)), changed, settings(), NOW).do).toBe("wait")
    expect(decide(viewJob(annotated({ ...atLimit, "max-restarts": "0" })), changed, settings(), NOW).do).toBe("give up")
    expect(decide(viewJob(annotated(never)), changed, settings(), NOW).do).toBe("give up")
    const grown = annotated({ "last-cause": "exit:1", restarts: "9", "restarts-of-cause": "9" })
    expect(waitOf(decide(viewJob(grown), changed, settings({ RESTART_RULES: "any=1s..1h" }), NOW))).toBe(1)
  })

  test("groupOf() is the namespace, or the annotation group", () => {
    const of = (annotations: Record<string, string>, namespace = "a", uid = "U1") =>
      groupOf(viewJob({ ...failedJob(), metadata: { ...annotated(annotations).metadata, namespace, uid } }))
    expect(of({})).toBe(of({}, "a", "U2"))
    expect(of({})).not.toBe(of({}, "b"))
    expect(of({ group: "flickr" })).toBe(of({ group: "flickr" }, "b", "U2"))
    expect(of({ group: "flickr" })).not.toBe(of({ group: "immich" }))
    expect(of({ group: "a" })).not.toBe(of({}, "a"))
    expect(of({ group: "namespace a" })).not.toBe(of({}, "a"))
  })

  test("isSelected() wants both JOB_NAMES and JOB_SELECTOR where both are set", () => {
    const selected = (env: Env) =>
      isSelected(viewJob(failedJob({ metadata: { labels: { app: "load" } } })), settings(env))
    expect([selected({}), selected({ JOB_SELECTOR: "app=load" }), selected({ JOB_SELECTOR: "app!=load" })]).toEqual([
      true,
      true,
      false,
    ])
    expect([selected({ JOB_NAMES: "load-b" }), selected({ JOB_NAMES: "", JOB_SELECTOR: "app" })]).toEqual([false, true])
  })

  test("decide() knows no local time: the clock change alters nothing, and all text is UTC with Z (G09)", () => {
    const script = `
      const operator = await import(${JSON.stringify(`${import.meta.dir}/operator.ts`)})
      const { decide, viewJob, readSettings, instantText, textRecord } = operator
      const { config } = readSettings({ NAMESPACE: "x", JOB_NAMES: "j", RESTART_DELAY: "60" })
      for (const at of ["2026-10-25T00:59:30Z", "2026-03-29T00:59:30Z"]) {
        const conditions = [{ type: "Failed", status: "True", lastTransitionTime: at }]
        const view = viewJob({ metadata: { namespace: "x", name: "j" }, status: { conditions } })
        const { dueAt } = decide(view, { cause: "unknown", lines: [], killed: [] }, config, 0)
        console.log(dueAt - Date.parse(at), instantText(dueAt), textRecord(dueAt, "info", "hello").trim())
      }`
    for (const TZ of ["Europe/Berlin", "Nowhere/Unknown"]) {
      const { stdout } = Bun.spawnSync([process.execPath, "-e", script], { env: { ...process.env, TZ } })
      expect(stdout.toString().trim().split("\n")).toEqual(
        ["2026-10-25", "2026-03-29"].map((day) => `60000 ${day}T01:00:30Z ${day} 01:00:30.000Z | INFO     | hello`),
      )
    }
  })

  test("overridesOf() takes a Job's own annotations in place of the settings", () => {
    const config = settings({ RESTART_RULES: "oom=1s", MAX_RESTARTS: "3", SKIP_DELAY_ON_OOM: "true" })
    const of = (annotations: Record<string, string>) => {
      const { rules, ...rest } = overridesOf(viewJob(annotated(annotations)), config)
      return { rules: meaningOf(rules), ...rest }
    }
    const own = { rules: "oom 0..3600; oom 1", delayMs: HOUR, maxRestarts: 3, paused: false, problems: [] }
    expect(of({})).toEqual(own)
    expect(of({ "restart-delay": " '5m' " })).toEqual({ ...own, rules: "oom 0..300; oom 1", delayMs: 5 * MINUTE })
    expect(of({ "restart-rules": "exit:3=6h,\nany=1s..1m" })).toEqual({ ...own, rules: "exit 3-3 21600; any 1..60" })
    expect(of({ "restart-rules": "" })).toEqual({ ...own, rules: "" })
    expect(of({ "max-restarts": "0" })).toEqual({ ...own, maxRestarts: 0 })
    expect(of({ paused: "true", group: "?!", "restart-now": "?!", "oom-memory-max": "2Gi" })).toEqual({
      ...own,
      paused: true,
    })
    expect(
      overridesOf(viewJob({ ...failedJob(), metadata: { annotations: { "restart-delay": "1s" } } }), config).delayMs,
    ).toBe(HOUR)
  })

  const wrongValues: Record<string, [texts: string[], expected: RegExp]> = {
    "restart-delay": [["soon", "", "-1", "1.5", "never"], /write whole seconds or a duration like 90s/],
    "restart-rules": [["oops=1h", "oom"], /at character 1 write CAUSE=WAIT, not/],
    "max-restarts": [["", "many", "-1", "1.5", "1000001"], /write a whole number from 0 to 1000000/],
    paused: [["", "yes", "1", "soon"], /write one of true, false/],
    "oom-memory-max": [["", "2GB", "0", "lots"], /write a quantity like 1.5Gi/],
  }
  test("overridesOf() does not parse an annotation of more than 10,000 characters", () => {
    const problemsOf = (rules: number) =>
      overridesOf(viewJob(annotated({ "restart-rules": "any=1s,".repeat(rules) })), settings()).problems
    expect(problemsOf(1_428)).toEqual([])
    expect(problemsOf(1_429)).toEqual([expect.stringContaining("write at most 10000 characters")])
  })

  test("overridesOf() does not search through a restart-delay that is longer than any duration", () => {
    const text = "1".repeat(250_000)
    for (const long of [`${text}x`, `${text}s`, "1s ".repeat(80_000)])
      expect(overridesOf(viewJob(annotated({ "restart-delay": long })), settings()).problems).toHaveLength(1)
  })

  test.each(Object.entries(wrongValues))(
    "overridesOf() says what is wrong with %s, and the setting holds",
    (name, [texts, expected]) => {
      const config = settings({ RESTART_RULES: "any=1s..1h", MAX_RESTARTS: "3" })
      for (const text of texts) {
        const { problems, ...rest } = overridesOf(viewJob(annotated({ [name]: text })), config)
        expect(problems).toEqual([expect.stringMatching(expected)])
        expect(problems[0]).toStartWith(
          `annotation ${PREFIX}${name} cannot be ${JSON.stringify(text)}, so the operator's setting holds: `,
        )
        expect(rest).toEqual({ delayMs: HOUR, rules: config.restartRules!, maxRestarts: 3, paused: false })
      }
    },
  )

  test("overridesOf() takes no pattern from a Job, however it is written, and reports every mistake", () => {
    for (const text of ["log:/(a+)+$/=1h", "any=1s, log:/x/i=never"]) {
      const { rules, problems } = overridesOf(viewJob(annotated({ "restart-rules": text })), settings())
      expect(rules).toEqual([])
      expect(problems).toEqual([
        expect.stringMatching(/at character (1|9) a log pattern may only stand in RESTART_RULES$/),
      ])
    }
    const all = Object.fromEntries(Object.keys(wrongValues).map((name) => [name, "?!"]))
    expect(overridesOf(viewJob(annotated(all)), settings()).problems).toHaveLength(5)
  })

  const longest: Record<string, [env: Env, ms: number]> = {
    "no rule": [{}, HOUR],
    "a longer rule": [{ RESTART_RULES: "exit:3=6h, oom=never" }, 6 * HOUR],
    "a rule that grows": [{ RESTART_RULES: "exit:3=1s..2h, oom=90m" }, 2 * HOUR],
    "a shorter rule": [{ RESTART_RULES: "oom=1m" }, HOUR],
    "a rule for all, and one that is not reached": [{ RESTART_RULES: "oom=1m, any=10s, exit:3=6h" }, MINUTE],
    "never for all": [{ RESTART_RULES: "any=never" }, 0],
  }
  test.each(Object.entries(longest))("longestWaitMs() with %s", (_, [env, ms]) => {
    expect(longestWaitMs(viewJob(failedJob()), settings(env))).toBe(ms)
  })

  test("longestWaitMs() is never shorter than what decide() comes to", () => {
    const causes = fc.constantFrom<Cause>("oom", "evicted", "deadline", "exit:3", "exit:7", "unknown")
    const rules = fc.array(
      fc.tuple(fc.constantFrom("oom", "evicted", "exit:1-9", "unknown", "any"), fc.nat(9_000), fc.nat(9_000)),
      { maxLength: 4 },
    )
    always([rules, causes, fc.nat(40)], (some, cause, count) => {
      const text = some.map(([what, a, b]) => `${what}=${Math.min(a, b)}..${Math.max(a, b)}`).join()
      const config = settings({ RESTART_RULES: text })
      const marks = { restarts: String(count), "restarts-of-cause": String(count), "last-cause": cause }
      const view = viewJob(annotated(marks))
      expect(waitOf(decide(view, failedBy(cause), config, NOW)) * SECOND).toBeLessThanOrEqual(
        longestWaitMs(view, config),
      )
    })
  })

  test("bookkeepingFor() counts, and tells where the Job came from and why it was restarted", () => {
    const config = settings({ RESTART_RULES: "exit:1-9=1s" })
    expect(bookkeepingFor(viewJob(failedJob()), failedBy("exit:3"), config)).toEqual(
      prefixed({
        restarts: "1",
        "restarts-of-cause": "1",
        "restarted-from": "U1",
        "last-cause": "exit:3",
        "last-failure": instantText(NOW),
      }),
    )
    const before = {
      restarts: "7",
      "restarts-of-cause": "2",
      "last-cause": "exit:4",
      "restart-now": "b",
      "restart-now-done": "b",
    }
    expect(bookkeepingFor(viewJob(annotated(before)), failedBy("exit:3"), config)).toMatchObject(
      prefixed({ restarts: "8", "restarts-of-cause": "3" }),
    )
    expect(bookkeepingFor(viewJob(annotated(before)), failedBy("oom"), config)).toMatchObject(
      prefixed({ restarts: "8", "restarts-of-cause": "1" }),
    )
    expect(
      bookkeepingFor(viewJob(annotated({ ...before, "restart-now": "c" })), failedBy("exit:3"), config),
    ).toMatchObject(prefixed({ restarts: "1", "restarts-of-cause": "1", "restart-now-done": "c" }))
  })

  test("bookkeepingFor() a Job that has succeeded begins its row anew and tells of no failure", () => {
    const job = {
      ...annotated({ restarts: "3", "restart-now": "x" }),
      status: { conditions: [isTrue("Complete") as never] },
    }
    expect(bookkeepingFor(viewJob(job), failedBy("unknown"), settings())).toEqual(
      prefixed({ restarts: "0", "restarts-of-cause": "0", "restarted-from": "U1", "restart-now-done": "x" }),
    )
  })

  const requests: Record<string, [Job, string]> = {
    "a failed Job": [failedJob(), "restart"],
    "a failed Job that is paused and given up": [annotated({ paused: "true", "max-restarts": "0" }), "restart"],
    "a finished Job": [jobWith([isTrue("Complete")]), "restart"],
    "a Job that runs": [runningJob(), "it is running"],
    "a Job that is failing": [jobWith([isTrue("FailureTarget")]), "it is failing"],
    "a suspended Job": [
      { ...runningJob(), spec: { ...spec(), suspend: true } },
      "it is suspended; set its spec.suspend to false instead",
    ],
    "a Job that is being deleted": [
      failedJob({ metadata: { deletionTimestamp: "2026-03-01T12:00:00Z" } }),
      "it is being deleted",
    ],
    "a CronJob's": [failedJob({ metadata: { ownerReferences: [cronJob()] } }), "it is owned by CronJob tick"],
  }
  test.each(Object.entries(requests))("decideOnRequest() of %s", (_, [job, what]) => {
    const decision = decideOnRequest(viewJob(job))
    expect(decision.do === "leave" ? decision.because : decision.do).toBe(what)
  })

  test("staleRecords() keeps the last so many of each Job, and nothing of a Job that is gone for a month", () => {
    const past = (job: string, age: number) => ({
      ...readPast({ name: `${job}${age / DAY}`, labels: prefixed({ job }) }),
      failedAt: NOW - age,
    })
    const all = [
      past("a", 0),
      past("a", 40 * DAY),
      past("a", 50 * DAY),
      past("b", 31 * DAY),
      past("b", 33 * DAY),
      past("c", 29 * DAY),
    ]
    const stale = (limit: number, there: string[]) =>
      staleRecords(all, limit, (job) => there.includes(job), NOW).map(({ name }) => name)
    expect(stale(2, ["a", "b", "c"])).toEqual(["a50"])
    expect(stale(1, ["a", "b", "c"])).toEqual(["a40", "a50", "b33"])
    expect(stale(9, [])).toEqual(["b31", "b33"])
  })
})

describe("5 Replacement and intent", () => {
  test("replacementFor() drops the generated selector and labels, and keeps the user's label (A01)", () => {
    const template = (labels: object) => ({ template: { metadata: { labels } } })
    const labels = { app: "load", "controller-uid": "U1", "job-name": "load-a" }
    const spec = { selector: { matchLabels: { "controller-uid": "U1" } }, ...template(labels) }
    const replacement = replacementFor({ metadata: { name: "load-a", uid: "U1" }, spec } as never) as unknown
    expect(replacement).toEqual({
      apiVersion: "batch/v1",
      kind: "Job",
      metadata: { name: "load-a" },
      spec: template({ app: "load" }),
    })
  })

  test("replacementFor() drops what the server made, in both places, and nothing else (A02)", () => {
    const plain = { "controller-uid": "U1", "job-name": "load-a" }
    const generated = { ...plain, "batch.kubernetes.io/controller-uid": "U1", "batch.kubernetes.io/job-name": "load-a" }
    const names = { name: "load-a", generateName: "load-" }
    const live = {
      metadata: {
        ...serverMetadata(),
        ...{ ...names, deletionTimestamp: "2026-03-01T00:00:00Z", deletionGracePeriodSeconds: 0, selfLink: "/x" },
        finalizers: ["foregroundDeletion", "orphan", "example.test/mine"],
        labels: { ...generated, own: "1" },
        annotations: { "batch.kubernetes.io/job-tracking": "", note: "keep" },
      },
      spec: { template: { metadata: { creationTimestamp: null, labels: { ...generated, team: "blue" } } } },
      status: { failed: 1 },
    } as unknown as Job
    expect(replacementFor(live)).toStrictEqual({
      metadata: { ...names, finalizers: ["example.test/mine"], labels: { own: "1" }, annotations: { note: "keep" } },
      spec: { template: { metadata: { labels: { team: "blue" } } } },
      ...{ apiVersion: "batch/v1", kind: "Job" },
    } as never)
  })

  test("replacementFor() keeps every spec field byte for byte, newer ones too (A17)", () => {
    const fields = JSON.parse(
      `{"completionMode":"Indexed","completions":3,"parallelism":3,"backoffLimitPerIndex":1,"maxFailedIndexes":1,
        "podReplacementPolicy":"Failed",
        "podFailurePolicy":{"rules":[{"action":"FailJob","onExitCodes":{"operator":"In","values":[42]}}]},
        "newerField":{"a":[null,"<&&\\"",0]}}`,
    )
    const live = stored({ ...failedJob(), spec: { ...spec(), ...fields }, status: { failedIndexes: "1" } }, "U1")
    const {
      template: _,
      suspend: __,
      ...rest
    } = replacementFor(live).spec as object & { template: object; suspend: boolean }
    expect(JSON.stringify(rest)).toBe(JSON.stringify(fields))
  })

  test("replacementFor() keeps all under manualSelector", () => {
    const labels = { "controller-uid": "mine", "job-name": "mine", app: "load" }
    const spec = { manualSelector: true, selector: { matchLabels: labels }, template: { metadata: { labels } } }
    expect(replacementFor(stored({ ...failedJob(), spec } as never, "U1")).spec).toMatchObject(spec)
  })

  const generated = {
    "controller-uid": "U1",
    "batch.kubernetes.io/controller-uid": "U1",
    "job-name": "load-a",
    "batch.kubernetes.io/job-name": "load-a",
  }
  const labelled: Record<string, [labels: Record<string, string>, kept: Record<string, string> | undefined]> = {
    "a job-name of the user's": [
      { "job-name": "pipeline-7", app: "x" },
      { "job-name": "pipeline-7", app: "x" },
    ],
    "a controller-uid of the user's": [
      { "controller-uid": "mine", "batch.kubernetes.io/job-name": "x" },
      { "controller-uid": "mine", "batch.kubernetes.io/job-name": "x" },
    ],
    "the generated ones and one of the user's": [{ ...generated, app: "x" }, { app: "x" }],
    "the generated ones of an old server": [{ "controller-uid": "U1", "job-name": "load-a", app: "x" }, { app: "x" }],
    "the generated ones alone": [generated, undefined],
    "a controller-uid of another Job": [
      { "controller-uid": "U9", app: "x" },
      { "controller-uid": "U9", app: "x" },
    ],
  }
  test.each(Object.entries(labelled))(
    "replacementFor() of a Job with %s in metadata.labels (D1)",
    (_, [labels, kept]) => {
      const live = stored(failedJob({ metadata: { labels } }), "U1")
      expect(replacementFor(live).metadata?.labels).toEqual(kept)
    },
  )

  test("replacementFor() leaves out labels that the server copied from the template", () => {
    const template = { ...spec().template, metadata: { labels: { app: "x" } } }
    const live = stored(failedJob({ spec: { template } }), "U1")
    expect(live.metadata?.labels).toMatchObject({ app: "x", "controller-uid": "U1" })
    expect(replacementFor(live).metadata?.labels).toBeUndefined()
  })

  test("replacementFor() takes away what Kueue wrote into the template on admission, and no other key of Kueue", () => {
    const admitted = {
      "kueue.x-k8s.io/workload": "job-load-a-55225",
      "kueue.x-k8s.io/podset": "main",
      "kueue.x-k8s.io/local-queue-name": "q1",
      "kueue.x-k8s.io/cluster-queue-name": "c1",
    }
    const own = { "kueue.x-k8s.io/podset-required-topology": "rack", note: "1" }
    const metadata = { labels: { ...admitted, app: "x" }, annotations: { ...admitted, ...own } }
    const template = { ...spec().template, metadata }
    const labels = { "kueue.x-k8s.io/queue-name": "q1" }
    const replacement = replacementFor(stored(failedJob({ spec: { template }, metadata: { labels } }), "U1"))
    expect(replacement.spec?.template.metadata).toEqual({ labels: { app: "x" }, annotations: own })
    expect(replacement.metadata?.labels).toEqual(labels)
  })

  test("replacementFor() names no namespace and no resourceVersion: it can be restored anywhere by hand", () => {
    const { metadata } = replacementFor(stored(failedJob(), "U1"))
    expect(metadata).toEqual({ name: "load-a" })
  })

  const numbers: Record<string, [unknown, string | undefined]> = {
    "9223372036854775807": [JSON.parse('{"spec":{"a":9223372036854775807}}'), "spec.a=9223372036854776000"],
    "2^53": [{ spec: { a: 2 ** 53 } }, "spec.a=9007199254740992"],
    "-2^53": [{ spec: [{ a: -(2 ** 53) }] }, "spec.0.a=-9007199254740992"],
    "2^53 - 1": [{ spec: { a: 2 ** 53 - 1 } }, undefined],
    "a fraction": [{ spec: { a: 0.5 } }, undefined],
    "a large number in a text": [{ spec: { a: "9223372036854775807" } }, undefined],
    null: [{ spec: { a: null } }, undefined],
  }
  test.each(Object.entries(numbers))("inexactNumber() with %s", (_, [value, path]) =>
    expect(inexactNumber(value)).toBe(path),
  )

  test("buildReplacement() adds our annotations and memory to what replacementFor() keeps, and nothing else", () => {
    always([anyUsersJob(), fc.boolean()], (user, defaulted) => {
      const live = stored(user, "U1", defaulted)
      const additions = { annotations: prefixed({ restarts: "1" }), memory: {} }
      const { metadata, ...rest } = buildReplacement(live, additions)
      const { metadata: kept, ...others } = replacementFor(live)
      expect(rest).toEqual(others)
      const created = metadata?.annotations?.[`${PREFIX}created`] ?? ""
      expect(created).toMatch(/^[0-9a-f]{16}$/)
      expect(metadata).toEqual({
        ...kept,
        annotations: { ...kept?.annotations, ...prefixed({ restarts: "1", created }) },
      })
    })
  })

  test("replacementFor() gives back what the user wrote, whatever it is, and changes nothing the second time", () => {
    always([anyUsersJob(), fc.boolean()], (user, defaulted) => {
      const live = stored(user, "U1", defaulted)
      const before = structuredClone(live)
      const replacement = replacementFor(live)
      expect(live).toEqual(before)
      expect(replacementFor(replacement)).toStrictEqual(replacement)
      // The server makes of it what it had made of the user's.
      expect(stored(replacement, "U2", defaulted)).toEqual(stored(user, "U2", defaulted))
      expect(fingerprintOf(stored(replacement, "U2", defaulted))).toBe(fingerprintOf(live))
    })
  })

  const written = { labels: { app: "load" }, annotations: { note: "1" }, finalizers: ["example.test/mine"] }
  const live = stored(failedJob({ metadata: written }), "U1")
  const edits: Record<string, [Edit, isSame: boolean]> = {
    "a delete": [
      { ...deleted, deletionGracePeriodSeconds: 0, finalizers: ["foregroundDeletion"], resourceVersion: "9" },
      true,
    ],
    "managed fields": [{ managedFields: [] }, true],
    "a finalizer that its controller takes off": [{ finalizers: [] }, true],
    "our bookkeeping": [{ annotations: bookkeepingFor(viewJob(live), failedBy("oom"), settings()) }, true],
    "an annotation": [{ annotations: { note: "2" } }, false],
    "an annotation for us": [{ annotations: prefixed({ "restart-delay": "5m" }) }, false],
    "a label": [{ labels: { app: "other" } }, false],
    "an owner": [{ ownerReferences: [owner("U5")] }, false],
    "a field of the spec": [{ spec: { parallelism: 2 } }, false],
    "its being suspended": [{ spec: { suspend: true } }, false],
  }
  test.each(Object.entries(edits))("fingerprintOf() a Job after %s", (_, [edit, isSame]) =>
    expect(fingerprintOf(edited(live, edit)) === fingerprintOf(live)).toBe(isSame),
  )

  test("fingerprintOf() does not depend on the status, the order of fields, or how memory is written", () => {
    const job = stored(hungryJob({ worker: { limits: { memory: "1024Mi" } } }, "2Gi"), "U1")
    const others = [
      { ...job, status: { failed: 9 } },
      reversed(job),
      JSON.parse(JSON.stringify(job).replaceAll('"1024Mi"', '"1Gi"')) as Job,
    ]
    expect(new Set([job, ...others].map(fingerprintOf)).size).toBe(1)
  })

  /** Any Job of a user, as it stands failed in the cluster, and what its replacement gets. */
  const anyPlan = () =>
    fc
      .tuple(anyUsersJob(), fc.boolean(), fc.option(fc.nat(10 ** 9), { nil: undefined }))
      .map(([user, defaulted, wait]) => {
        const live = stored(user, "U1", defaulted)
        const annotations = bookkeepingFor(viewJob(live), failedBy("oom"), settings())
        const dueAt = wait === undefined ? undefined : NOW + wait * SECOND
        return { plan: { live, additions: { annotations, memory: {} }, dueAt }, defaulted }
      })

  test.each([false, true])(
    "readIntent() gives back exactly what draftOf() drafted, after the server has stored it (wide: %s)",
    (wide) => {
      always([anyPlan()], ({ plan, defaulted }) => {
        const draft = draftOf(plan)
        expect(draft.replacement).toEqual(buildReplacement(plan.live, plan.additions))
        const intent = readIntent(stored(intentFor(draft, wide), "U7", defaulted)) as Intent
        const { name, additions, ...known } = intent
        expect(known).toEqual({
          namespace: "batch-a",
          uid: "U7",
          version: "7",
          deleting: false,
          unsafe: false,
          jobName: "load-a",
          jobUid: "U1",
          jobVersion: "7",
          dueAt: plan.dueAt,
          replacement: draft.replacement,
          fingerprint: fingerprintOf(plan.live),
        })
        expect(additions).toMatchObject(plan.additions)
        // From what was read, the same intent can be written again.
        const again = readIntent(stored(intentFor(draftFrom(intent), wide), "U7", defaulted))
        expect([again, name]).toEqual([intent, intentFor(draft).metadata?.name ?? ""])
      })
    },
  )

  test("intentFor() carries nothing of the user's metadata, and can neither run nor be adopted", () => {
    always([anyPlan()], ({ plan }) => {
      const { metadata, spec, ...rest } = intentFor(draftOf(plan))
      const template = plan.live.spec?.template.spec as never
      expect(rest).toEqual({ apiVersion: "batch/v1", kind: "Job" })
      expect(Object.keys(metadata ?? {}).sort()).toEqual(["annotations", "labels", "name"])
      expect(metadata?.labels).toEqual({ [INTENT]: "load-a" })
      expect(Object.keys(metadata?.annotations ?? {}).sort()).toEqual([REPLACEMENT, REPLACES])
      expect(spec).toEqual({
        suspend: true,
        parallelism: 0,
        managedBy: INTENT,
        template: { ...spec?.template, spec: template },
      })
      const labels = Object.keys(spec?.template.metadata?.labels ?? {})
      expect(labels.filter((key) => /controller-uid|job-name/.test(key))).toEqual([])
    })
  })

  test("intentFor() of a Job with manualSelector has no pod label by which that Job would find pods of its own", () => {
    const labels = { app: "x", "batch.kubernetes.io/job-name": "load-a" }
    const fields = { manualSelector: true, selector: { matchLabels: labels } }
    const template = { ...spec().template, metadata: { labels } }
    const live = stored(failedJob({ spec: { ...fields, template } }), "U1")
    const intent = intentFor(draftOf({ live, additions: NONE, dueAt: undefined }))
    expect(intent.spec).toMatchObject({ template: { metadata: { labels: { app: "x" } } } })
    expect(Object.keys(intent.spec ?? {}).sort()).toEqual(["managedBy", "parallelism", "suspend", "template"])
  })

  test("intentFor() wide has what the user wrote, but no key by which known tools prune, and no selector", () => {
    const pruned = {
      "kubectl.kubernetes.io/last-applied-configuration": "{}",
      "applyset.kubernetes.io/part-of": "a",
      "app.kubernetes.io/instance": "a",
      "app.kubernetes.io/managed-by": "Helm",
      "argocd.argoproj.io/tracking-id": "a",
      "kustomize.toolkit.fluxcd.io/name": "a",
      "helm.toolkit.fluxcd.io/name": "a",
      "kapp.k14s.io/app": "1",
      "objectset.rio.cattle.io/hash": "a",
      "meta.helm.sh/release-name": "a",
      "kueue.x-k8s.io/priority-class": "high",
    }
    const kept = { team: "blue", "app.kubernetes.io/name": "load", "kueue.x-k8s.io/queue-name": "q1" }
    const fields = {
      activeDeadlineSeconds: 60,
      ttlSecondsAfterFinished: 5,
      backoffLimit: 3,
      parallelism: 4,
      completions: 4,
      suspend: false,
      manualSelector: true,
      selector: { matchLabels: { app: "x" } },
    }
    const ownerReferences = [owner("U5")]
    const live = failedJob({
      metadata: {
        labels: { ...pruned, ...kept },
        annotations: { ...pruned, ...kept },
        ownerReferences,
        finalizers: ["a/b"],
      },
      spec: fields,
    })
    const { metadata, spec } = intentFor(draftOf({ live, additions: NONE, dueAt: undefined }), true)
    expect(metadata?.labels).toEqual({ ...kept, [INTENT]: "load-a" })
    expect(metadata?.annotations).toEqual({
      ...kept,
      [`${PREFIX}created`]: expect.any(String),
      [REPLACEMENT]: expect.any(String),
      [REPLACES]: expect.any(String),
    })
    expect([metadata?.ownerReferences, metadata?.finalizers]).toEqual([undefined, undefined])
    const { manualSelector: _, selector: __, ...others } = fields
    expect(spec).toEqual({
      ...others,
      suspend: true,
      parallelism: 0,
      managedBy: INTENT,
      template: expect.anything(),
    })
  })

  test("intentFor() holds the replacement alone in one annotation: it can be piped to kubectl create", () => {
    const live = stored(failedJob({ metadata: { labels: { app: "x" } } }), "U1")
    const draft = draftOf({ live, additions: NONE, dueAt: undefined })
    const text = intentFor(draft).metadata?.annotations?.[REPLACEMENT] ?? ""
    expect(JSON.parse(text)).toEqual(draft.replacement)
  })

  test("intentFor() packs a replacement above 200 KiB with gzip, and readIntent() unpacks it", () => {
    const withScript = (kib: number) => {
      const args = ["echo hello\n".repeat(Math.round((kib * 1_024) / 12))]
      const template = { ...spec().template, spec: { containers: [{ name: "worker", image: "busybox", args }] } }
      const live = stored(failedJob({ spec: { template } }), "U1")
      return draftOf({ live, additions: NONE, dueAt: undefined })
    }
    const [small, large] = [withScript(190), withScript(400)]
    const annotation = (draft: typeof small) => intentFor(draft).metadata?.annotations?.[REPLACEMENT] ?? ""
    expect(annotation(small)).toStartWith("{")
    expect(annotation(large)).toMatch(/^H4sI[\w+/=]+$/)
    expect(annotation(large).length).toBeLessThan(200 << 10)
    for (const draft of [small, large])
      expect(readIntent(stored(intentFor(draft), "U7"))?.replacement).toEqual(draft.replacement)
  })

  test("intentFor() gives one valid name for the same Job, version and due time, another for any other", () => {
    const nameOf = (name: string, uid = "U1", resourceVersion = "7", dueAt?: number) => {
      const live = { ...failedJob(), metadata: { ...failedJob().metadata, name, uid, resourceVersion } }
      return intentFor(draftOf({ live, additions: NONE, dueAt })).metadata?.name ?? ""
    }
    expect(nameOf("load-a")).toMatch(/^load-a-restart-[0-9a-f]{12}$/)
    const names = [
      nameOf("load-a"),
      nameOf("load-a"),
      nameOf("load-a", "U2"),
      nameOf("load-a", "U1", "8"),
      nameOf("load-a", "U1", "7", NOW),
      nameOf("load-b"),
    ]
    expect(new Set(names).size).toBe(5)
    const long = `${"a".repeat(60)}.${"b".repeat(60)}`
    for (const name of [
      "a",
      "a".repeat(63),
      `${"a".repeat(29)}.b`,
      `${"a".repeat(28)}--.b`,
      `${"a.".repeat(31)}a`,
      long,
    ])
      expect(nameOf(name)).toMatch(/^(?=.{14,51}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/)
  })

  test("labelValueFor() is the Job's name, or a hash of one that is too long for a label", () => {
    const long = (length: number, end = "") => `${"a".repeat(length - end.length)}${end}`
    expect(["a", long(63)].map(labelValueFor)).toEqual(["a", long(63)])
    const values = [long(64), long(70), long(253), long(70, ".b"), long(70, ".c")].map(labelValueFor)
    expect(new Set(values).size).toBe(5)
    for (const value of values) expect(value).toMatch(/^[0-9a-f]{12}$/)
    const intent = intentFor(draftOf({ live: { ...failedJob({ name: long(70) }) }, additions: NONE, dueAt: undefined }))
    expect(intent.metadata?.labels).toEqual({ [INTENT]: labelValueFor(long(70)) })
    expect(readIntent(stored(intent, "U7"))?.jobName).toBe(long(70))
  })

  const aDraft = () => draftOf({ live: stored(failedJob(), "U1"), additions: NONE, dueAt: undefined })
  const withAnnotations = (annotations: Record<string, string | undefined>) => {
    const intent = stored(intentFor(aDraft()), "U7")
    const all = Object.entries({ ...intent.metadata?.annotations, ...annotations }).filter(
      ([, text]) => text !== undefined,
    )
    return {
      ...intent,
      metadata: { ...intent.metadata, annotations: Object.fromEntries(all) as Record<string, string> },
    }
  }
  const unreadable: Record<string, Record<string, string | undefined>> = {
    "without its replacement": { [REPLACEMENT]: undefined },
    "without what it replaces": { [REPLACES]: undefined },
    "with both emptied": { [REPLACEMENT]: "", [REPLACES]: "" },
    "with half a replacement": { [REPLACEMENT]: "{" },
    "with null for a replacement": { [REPLACEMENT]: "null" },
    "with a list for a replacement": { [REPLACEMENT]: "[]" },
    "with an empty replacement": { [REPLACEMENT]: "{}" },
    "with what is no gzip": { [REPLACEMENT]: "H4sIAAAAAAAA" },
    "with gzip of more than any Job takes": {
      [REPLACEMENT]: Bun.gzipSync(Buffer.from(JSON.stringify(aDraft().replacement) + " ".repeat(4 << 20))).toBase64(),
    },
    "with a replacement that is no Job": { [REPLACEMENT]: '{"metadata":{"name":"load-a","ownerReferences":5}}' },
    "with another Job's replacement": { [REPLACEMENT]: '{"metadata":{"name":"load-b"}}' },
    "without a uid": { [REPLACES]: '{"uid":"","resourceVersion":"7"}' },
    "without a version": { [REPLACES]: '{"uid":"U1"}' },
    "with another version": { [REPLACES]: '{"uid":"U1","resourceVersion":"8"}' },
    "with another due time": {
      [REPLACES]: '{"uid":"U1","resourceVersion":"7","dueAt":"2026-03-01T13:00:00Z","fingerprint":"x"}',
    },
  }
  test.each(Object.entries(unreadable))("readIntent() is undefined for an intent %s", (_, annotations) => {
    const intent = withAnnotations(annotations)
    expect([readIntent(intent), isIntent(intent)]).toEqual([undefined, true])
  })

  const long = "a".repeat(40)
  const noNames = ['a"} 1', "a\nb", `${long}"`, `${long}\u202e`, "a/b", "..", "-a", "A", "a".repeat(254)]
  test.each(noNames)("readIntent() is undefined for an intent of %j, for no Job can have this name", (name) => {
    const intent = intentFor(draftOf({ live: failedJob({ name }), additions: NONE, dueAt: undefined }))
    const { [REPLACEMENT]: _, ...annotations } = intentOfV1().metadata?.annotations ?? {}
    const hidden = JSON.stringify({ ...JSON.parse(annotations[INTENT] ?? ""), name })
    const ofV1 = { ...intentOfV1(), metadata: { ...intentOfV1().metadata, annotations: { [INTENT]: hidden } } }
    expect([readIntent(stored(intent, "U7")), readIntent(ofV1)]).toEqual([undefined, undefined])
  })

  test("readIntent() is undefined for a Job that is no intent", () =>
    expect([readIntent(failedJob()), isIntent(failedJob())]).toEqual([undefined, false]))

  test("readIntent() reads an intent that has lost its label", () => {
    const intent = withAnnotations({})
    expect(readIntent({ ...intent, metadata: { ...intent.metadata, labels: { app: "x" } } })?.jobUid).toBe("U1")
  })

  test("readIntent() tells whether an intent is being deleted", () => {
    const intent = withAnnotations({})
    expect(readIntent({ ...intent, metadata: { ...intent.metadata, ...deleted } })?.deleting).toBe(true)
  })

  test("readIntent() completes what version 1.0.0 wrote", () => {
    const bookkeeping = prefixed({
      restarts: "1",
      "restarts-of-cause": "1",
      "restarted-from": "U1",
      "last-cause": "oom",
      "last-failure": "2026-03-01T12:00:00Z",
    })
    const intent = readIntent(intentOfV1()) as Intent
    expect(intent).toMatchObject({
      namespace: "batch-a",
      name: "load-a-restart-f928c3f35e6e",
      uid: "U7",
      jobName: "load-a",
      jobUid: "U1",
      jobVersion: "7",
      dueAt: NOW + HOUR,
      additions: { annotations: bookkeeping, memory: { worker: "2Gi" } },
    })
    expect(intent.replacement).toEqual({
      apiVersion: "batch/v1",
      kind: "Job",
      metadata: {
        name: "load-a",
        labels: { app: "load", "kueue.x-k8s.io/queue-name": "q1" },
        annotations: {
          note: "keep",
          ...bookkeeping,
          ...prefixed({ "oom-memory-max": "2Gi", "oom-memory-first": "worker=1Gi" }),
          [`${PREFIX}created`]: expect.stringMatching(/^[0-9a-f]{16}$/),
        },
        ownerReferences: [{ apiVersion: "v1", kind: "ConfigMap", name: "c", uid: "U5" }],
        finalizers: ["example.test/mine"],
      },
      spec: {
        backoffLimit: 2,
        suspend: false,
        template: {
          metadata: { labels: { app: "load" } },
          spec: {
            restartPolicy: "Never",
            containers: [{ name: "worker", image: "busybox", resources: { limits: { memory: "2Gi" } } }],
          },
        },
      },
    } as unknown as Job)
  })

  test("an intent of version 1.0.0 knows the Job that it replaces: that is no edit, another is", () => {
    const { fingerprint, replacement } = readIntent(intentOfV1()) as Intent
    const { metadata, spec } = JSON.parse(JSON.stringify(replacement).replace('"2Gi"}', '"1Gi"}')) as Job
    const { "flickr-immich-k8s-sync-operator/oom-memory-first": _, ...annotations } = metadata?.annotations ?? {}
    const live = stored(
      { apiVersion: "batch/v1", kind: "Job", metadata: { ...metadata, annotations }, spec: spec! },
      "U1",
    )
    expect(fingerprintOf(live)).toBe(fingerprint)
    expect(fingerprintOf(edited(live, { spec: { backoffLimit: 3 } }))).not.toBe(fingerprint)
  })

  test.each([
    ..."|{|null|[]|3|{}".split("|"),
    '{"name":"a","uid":"","resourceVersion":"1"}',
    '{"name":1,"uid":"u","resourceVersion":"1"}',
    '{"name":"a","uid":"u","resourceVersion":"1","metadata":{"ownerReferences":5}}',
  ])("readIntent() is undefined for an intent of version 1.0.0 with %j", (text) => {
    const intent = intentOfV1()
    expect(readIntent({ ...intent, metadata: { ...intent.metadata, annotations: { [INTENT]: text } } })).toBeUndefined()
  })

  type Webhook = (metadata: NonNullable<Job["metadata"]>, spec: NonNullable<Job["spec"]>) => void
  const webhooks: Record<string, [Webhook, expected: string | undefined]> = {
    "makes nothing of it": [() => {}, undefined],
    "adds a label and an annotation": [
      (metadata) => {
        Object.assign(metadata.labels ?? {}, { team: "blue" })
        Object.assign(metadata.annotations ?? {}, { seen: "1" })
      },
      undefined,
    ],
    "is a server without JobManagedBy, which drops managedBy": [(_, spec) => delete spec.managedBy, undefined],
    "removes its label": [(m) => delete m.labels?.[INTENT], `its label ${INTENT} was removed or changed`],
    "changes its label": [
      (m) => Object.assign(m.labels ?? {}, { [INTENT]: "load-b" }),
      `its label ${INTENT} was removed or changed`,
    ],
    "drops its annotations": [
      (m) => delete m.annotations,
      `its annotation ${REPLACEMENT} and ${REPLACES} was removed or changed`,
    ],
    "changes the replacement by a byte": [
      (m) => Object.assign(m.annotations ?? {}, { [REPLACEMENT]: `${m.annotations?.[REPLACEMENT]} ` }),
      `its annotation ${REPLACEMENT} was removed or changed`,
    ],
    "changes what it replaces": [
      (m) => Object.assign(m.annotations ?? {}, { [REPLACES]: "{}" }),
      `its annotation ${REPLACES} was removed or changed`,
    ],
    "adds an owner": [(m) => Object.assign(m, { ownerReferences: [owner("U5")] }), "it got the owner Job load-a"],
    "adds a finalizer": [(m) => Object.assign(m, { finalizers: ["a/b", "c"] }), "it got the finalizer a/b, c"],
    "deletes it": [(m) => Object.assign(m, deleted), "it is being deleted"],
    "resumes it": [(_, spec) => Object.assign(spec, { suspend: false }), COULD_RUN],
    "drops suspend": [(_, spec) => delete spec.suspend, COULD_RUN],
    "scales it": [(_, spec) => Object.assign(spec, { parallelism: 1 }), COULD_RUN],
    "drops parallelism": [(_, spec) => delete spec.parallelism, COULD_RUN],
    "gives it to the Job controller": [
      (_, spec) => Object.assign(spec, { managedBy: "kubernetes.io/job-controller" }),
      COULD_RUN,
    ],
    "does several of these": [
      (m, spec) => {
        Object.assign(m, { finalizers: ["a/b"] })
        Object.assign(spec, { suspend: false })
      },
      `it got the finalizer a/b; ${COULD_RUN}`,
    ],
  }
  test.each<[string, object, boolean]>([
    ["no metadata of others", {}, false],
    ["an owner", { ownerReferences: [owner("U5")] }, true],
    ["a finalizer", { finalizers: ["a/b"] }, true],
    ["no label", { labels: {} }, true],
    ["the finalizer of a foreground delete", { finalizers: ["foregroundDeletion"] }, false],
  ])("readIntent() says whether an intent with %s is unsafe", (_, metadata, expected) => {
    const made = stored(intentFor(aDraft()), "U7")
    expect(readIntent({ ...made, metadata: { ...made.metadata, ...metadata } })?.unsafe).toBe(expected)
  })

  const controller = "kubernetes.io/job-controller"
  test.each<[string, object, boolean]>([
    ["resumed and scaled, managed by us", { suspend: false, parallelism: 1 }, false],
    ["suspended, managed by nobody", { managedBy: undefined }, false],
    ["resumed, managed by nobody", { suspend: false, managedBy: undefined }, false],
    ["resumed and scaled, managed by nobody", { suspend: false, parallelism: 1, managedBy: undefined }, true],
    ["resumed and scaled, managed by a controller", { suspend: false, parallelism: 1, managedBy: controller }, true],
  ])("readIntent() says whether an intent is unsafe that is %s", (_, spec, expected) => {
    const made = stored(intentFor(aDraft()), "U7")
    expect(readIntent({ ...made, spec: { ...made.spec, ...spec } } as Job)?.unsafe).toBe(expected)
  })

  test.each(Object.entries(webhooks))("flawOf() an intent where a webhook %s", (_, [change, expected]) => {
    const sent = intentFor(aDraft())
    const made = stored(sent, "U7")
    change(made.metadata!, made.spec!)
    expect(flawOf(sent, made)).toBe(expected)
  })

  /** Rules of nextStep(), by the part of the protocol they belong to. */
  const rules: Record<string, Record<string, [Partial<Observation>, expected: string]>> = {
    "1 and 2, no intent stands": {
      "the Job failed and is due": [{}, "write intent"],
      "the Job is not due yet": [{ desired: desired("wait", NOW + HOUR) }, "done: waiting for 1h"],
      "it is not due, but a person asks for the restart now": [
        { desired: desired("wait", NOW + HOUR), atOnce: true },
        "write intent",
      ],
      "the Job is due, but RESTART_SPACING holds it": [{ heldUntil: NOW + MINUTE }, "done: waiting for 1m"],
      "the Job is due and its TTL may take it, but RESTART_SPACING holds it": [
        { ...ttl(600), heldUntil: NOW + HOUR },
        "write intent, due in 0s",
      ],
      "it is to be left alone": [{ desired: desired("leave") }, "done: changed"],
      "it is given up": [{ desired: desired("give up") }, "done: changed"],
      "nobody wants it restarted, only an intent was to be completed": [{ desired: undefined }, "done: changed"],
      "it is being deleted": [{ live: liveJob({ ...deleted }) }, "done: changed"],
      "it is gone, and nobody has seen it whole": [{ live: undefined, latest: undefined }, "done: changed"],
      "the cluster rejected this restart before: it is asked before anything is written": [
        { wasRejected: true },
        "write intent, after a proof",
      ],
      "it has a number that JSON cannot carry (D4)": [
        { live: liveJob({}, { activeDeadlineSeconds: 2 ** 60 }) },
        "done: rejected, spec.activeDeadlineSeconds=1152921504606847000 is above 2^53 and would be changed; " +
          "write a smaller number",
      ],
    },
    "TTL, no intent stands": {
      "the TTL ends before it is due": [
        { ...ttl(600), desired: desired("wait", NOW + HOUR) },
        "write intent, due in 1h",
      ],
      "the TTL ends just after it is due": [
        { ...ttl(3_660), desired: desired("wait", NOW + HOUR) },
        "write intent, due in 1h",
      ],
      "the TTL ends long after it is due": [
        { ...ttl(7_200), desired: desired("wait", NOW + HOUR) },
        "done: waiting for 1h",
      ],
      "it is due before its TTL ends": [ttl(600), "write intent"],
      "its TTL has removed it before it was due": [
        { live: undefined, latest: ttl(0).live, desired: desired("wait", NOW + HOUR) },
        "write intent, due in 1h",
      ],
      "its TTL has removed it when it was due": [{ live: undefined, latest: ttl(0).live }, "write intent, due in 0s"],
      "a person has deleted it": [{ live: undefined, latest: ttl(600).live, deletedByPerson: true }, "done: changed"],
      "it had no TTL, so a person has deleted it": [
        { live: undefined, latest: ttl(600).live, hadTtl: false },
        "done: changed",
      ],
      "its TTL was taken off while it went": [
        { live: undefined, latest: liveJob({}), hadTtl: true },
        "write intent, due in 0s",
      ],
      "its TTL has removed it, and it was to be left alone": [
        { live: undefined, latest: ttl(0).live, desired: desired("leave") },
        "done: changed",
      ],
    },
    "an intent was removed by somebody": {
      "and the Job is gone": [{ intentWasRemoved: true, live: undefined }, "done: cancelled"],
      "and the Job is being deleted": [{ intentWasRemoved: true, live: liveJob({ ...deleted }) }, "done: cancelled"],
      "and the Job stands": [{ intentWasRemoved: true }, "done: changed"],
      "and the Job stands, but a delete without an answer may still take it": [
        { intentWasRemoved: true, mayBeDeleted: true },
        "wait for a delete without an answer, which may still be applied",
      ],
      "but by us, and the answer was lost": [
        { intentWasRemoved: true, live: undefined, ended: { result: "replaced", uid: "U2" } },
        "done: replaced",
      ],
    },
    "4 and 5, an intent and the Job stand": {
      "the Job is as it was": [{ intents: [intentOf()] }, "prove and delete"],
      "the Job is as it was, and RESTART_SPACING would hold another one": [
        { intents: [intentOf()], heldUntil: NOW + MINUTE },
        "prove and delete",
      ],
      "an earlier process wrote the intent, whatever is selected now": [
        { intents: [intentOf()], desired: undefined },
        "prove and delete",
      ],
      "it has a TTL, so that a rejection may not remove the intent (A4)": [
        { ...ttl(600), intents: [intentOf({ ttlSecondsAfterFinished: 600 })] },
        "prove and delete, with a TTL",
      ],
      "the Job was edited since: the intent can never delete it": [
        { intents: [intentOf()], live: liveJob({ resourceVersion: "8" }) },
        "clean up U7: changed",
      ],
      "a webhook gave the intent an owner, and its writer could not remove it": [
        { intents: [{ ...intentOf(), unsafe: true }] },
        "clean up U7: go on, withdraw",
      ],
      "a webhook gave the intent an owner, and an older one that waits has none": [
        { intents: [{ ...intentOf({}, { uid: "U8" }), unsafe: true }, laterIntent()] },
        "clean up U8: go on, withdraw",
      ],
      "the Job is to be left alone now: a restart under way goes on": [
        { intents: [intentOf()], desired: desired("leave") },
        "prove and delete",
      ],
      "the Job is given up now: a restart under way goes on": [
        { intents: [intentOf()], desired: desired("give up") },
        "prove and delete",
      ],
    },
    "an intent waits": {
      "and the Job is to be left alone now": [
        { intents: [laterIntent()], desired: desired("leave") },
        "clean up U7: changed, withdraw",
      ],
      "and the Job is given up now": [
        { intents: [laterIntent()], desired: desired("give up") },
        "clean up U7: changed, withdraw",
      ],
      "and is not due": [{ intents: [laterIntent()], desired: desired("wait", NOW + HOUR) }, "done: waiting for 1h"],
      "and the Job was edited since": [
        { intents: [laterIntent()], live: liveJob({ resourceVersion: "8" }), desired: desired("wait", NOW + HOUR) },
        "clean up U7: changed",
      ],
      "and the Job was edited since, which its TTL may take: the next intent is written first": [
        {
          intents: [laterIntent()],
          live: liveJob({ resourceVersion: "8" }, { ttlSecondsAfterFinished: 600 }),
          desired: desired("wait", NOW + HOUR),
        },
        "write intent, due in 1h",
      ],
      "and has an owner, with which the garbage collector may remove it": [
        { intents: [{ ...laterIntent(), unsafe: true }], desired: desired("wait", NOW + HOUR) },
        "clean up U7: go on, withdraw",
      ],
      "and is not due, for an earlier process": [
        { intents: [laterIntent()], desired: undefined },
        "done: waiting for 1h",
      ],
      "and is due: one without a due time is written, so that no clock makes our delete a person's": [
        { intents: [laterIntent(0)] },
        "write intent",
      ],
      "longer than this process wants": [
        { intents: [laterIntent()], desired: desired("wait", NOW + MINUTE) },
        "write intent, due in 1m",
      ],
      "less long than this process wants": [
        { intents: [laterIntent()], desired: desired("wait", NOW + DAY) },
        "done: waiting for 1h",
      ],
      "but the Job is due now: it can still be cancelled": [{ intents: [laterIntent()] }, "write intent, due in 0s"],
      "but a person asks for the restart now": [
        { intents: [laterIntent()], desired: desired("wait", NOW + HOUR), atOnce: true },
        "write intent",
      ],
      "and its TTL has removed the Job": [
        { intents: [laterIntent()], live: undefined, desired: desired("wait", NOW + HOUR) },
        "done: waiting for 1h",
      ],
      "and its TTL has removed the Job, for an earlier process": [
        { intents: [laterIntent()], live: undefined, desired: undefined },
        "done: waiting for 1h",
      ],
      "longer than this process wants, and its TTL has removed the Job": [
        { intents: [laterIntent()], live: undefined, desired: desired("wait", NOW + MINUTE) },
        "write intent, due in 1m",
      ],
      "and its TTL has removed the Job, which is due": [{ intents: [laterIntent(0)], live: undefined }, "create"],
      "and is due, but RESTART_SPACING holds it": [
        { intents: [laterIntent(0)], heldUntil: NOW + MINUTE },
        "done: waiting for 1m",
      ],
      "and its TTL has removed the Job, which is due, but RESTART_SPACING holds it": [
        { intents: [laterIntent(0)], live: undefined, heldUntil: NOW + MINUTE },
        "done: waiting for 1m",
      ],
      "and its TTL has removed the Job, which a person wants now": [
        { intents: [laterIntent()], live: undefined, atOnce: true },
        "create",
      ],
      "and a person has deleted the Job": [
        { intents: [laterIntent()], live: undefined, deletedByPerson: true },
        "clean up U7: cancelled",
      ],
      "and its TTL has removed the Job, whose cause turns out to forbid a restart": [
        { intents: [laterIntent()], live: undefined, desired: desired("give up") },
        "clean up U7: changed",
      ],
      "and its TTL has removed the Job, which its writer wanted back when it knew the cause": [
        { intents: [informedIntent()], live: undefined, desired: desired("give up") },
        "done: waiting for 1h",
      ],
      "and its TTL has removed the Job, which a person wants now whatever the cause": [
        { intents: [laterIntent()], live: undefined, desired: desired("give up"), atOnce: true },
        "create",
      ],
      "and a person has deleted the Job just before it was due": [
        { intents: [laterIntent(0)], live: undefined, deletedByPerson: true },
        "clean up U7: cancelled",
      ],
      "and a person who had deleted the Job wants it now": [
        { intents: [laterIntent()], live: undefined, deletedByPerson: true, atOnce: true },
        "create",
      ],
    },
    "6, the Job is being deleted": {
      "by us": [{ intents: [intentOf()], live: going() }, "wait for the old Job to go"],
      "by its TTL, before it is due": [{ intents: [laterIntent()], live: going() }, "wait for the old Job to go"],
      "and a finalizer holds it": [
        { intents: [intentOf()], live: going(), blockers: [{ finalizers: ["a/b"] }] },
        "wait for the old Job to go: a/b",
      ],
      "and nothing has held it for less than a minute": [
        { intents: [intentOf()], live: going(), unblockedForMs: 59_999 },
        "wait for the old Job to go",
      ],
      "and nothing has held it for a minute (E1)": [
        { intents: [intentOf()], live: going(), unblockedForMs: 60_000 },
        "delete in background",
      ],
      "and its finalizers are taken off by their controllers": [
        { intents: [intentOf({}, { metadata: { finalizers: ["example.test/mine"] } })], live: going() },
        "wait for the old Job to go",
      ],
      "and a person has edited it (B6)": [
        { intents: [intentOf()], live: going({ labels: { a: "b" } }) },
        "write intent, after a proof",
      ],
      "and a person has edited it, while it waits": [
        { intents: [laterIntent()], live: going({ labels: { a: "b" } }) },
        "write intent, due in 1h, after a proof",
      ],
      "and the cluster rejects the edit": [
        { intents: [intentOf()], live: going({ labels: { a: "b" } }), rejectedEdit: "9" },
        "wait for the old Job to go",
      ],
      "and it was edited again after an edit that the cluster rejects": [
        { intents: [intentOf()], live: going({ labels: { a: "c" }, resourceVersion: "10" }), rejectedEdit: "9" },
        "write intent, after a proof",
      ],
      "and an intent stands for the edit: the older one goes (B6)": [
        { intents: [intentOf({}, { version: "9", uid: "U8" }), intentOf()], live: going() },
        "clean up U7: go on",
      ],
      "and the intent for the edit is unsafe: the older one stays, too": [
        { intents: [{ ...intentOf({}, { version: "9", uid: "U8" }), unsafe: true }, intentOf()], live: going() },
        "wait for the old Job to go",
      ],
    },
    "6 and 7, the Job is absent": {
      "and nothing is left of it": [{ intents: [intentOf()], live: undefined }, "create"],
      "and nothing is known of it but the intent": [
        { intents: [intentOf()], live: undefined, latest: undefined, desired: undefined },
        "create",
      ],
      "and its pods still run (A06)": [
        { intents: [intentOf()], live: undefined, blockers: [{ pod: "p", phase: "Running", finalizers: [] }] },
        "wait for the pods of the old Job to go: pod p (Running)",
      ],
      "and somebody deleted it, which cannot be told from our own delete": [
        { intents: [intentOf()], live: undefined, deletedByPerson: true },
        "create",
      ],
      "and it was edited before it went": [
        { intents: [intentOf()], live: undefined, latest: going({ labels: { a: "b" } }) },
        "write intent, after a proof",
      ],
      "and the cluster rejects the edit": [
        { intents: [intentOf()], live: undefined, latest: going({ labels: { a: "b" } }), rejectedEdit: "9" },
        "create",
      ],
      "and two intents stand, for another operator wrote one": [
        { intents: [intentOf(), laterIntent(HOUR, "U8")], live: undefined },
        "clean up U8: go on",
      ],
    },
    "8, another uid has the name": {
      "which we, or an earlier process, created": [
        { intents: [intentOf()], live: back({ annotations: prefixed({ "restarted-from": "U1" }) }) },
        "clean up U7: restarted",
      ],
      "which somebody else created (A15, G07)": [
        { intents: [intentOf()], live: back({ annotations: { tool: "sync" } }) },
        "clean up U7: replaced",
      ],
      "which is being deleted already": [
        { intents: [intentOf()], live: back({ ...deleted }) },
        "clean up U7: replaced",
      ],
      "which is gone again already": [
        { intents: [intentOf()], live: undefined, latest: back({}) },
        "clean up U7: replaced",
      ],
      "while an intent waits": [{ intents: [laterIntent()], live: back({}) }, "clean up U7: replaced"],
      "and two intents stand": [
        { intents: [intentOf(), laterIntent(HOUR, "U8")], live: back({}) },
        "clean up U7, U8: replaced",
      ],
    },
    "an edit waits beside the intent by which another operator deleted the Job": {
      "and the Job is going: both stay": [
        { intents: [laterIntent(), intentOf({}, { uid: "U8" })], live: liveJob({ ...deleted }) },
        "wait for the old Job to go",
      ],
      "and the Job is gone: the edit waits no longer": [
        { intents: [laterIntent(), intentOf({}, { uid: "U8" })], live: undefined, deletedByPerson: true },
        "create",
      ],
      "and the Job stands: it cannot be deleted by the older one": [
        { intents: [laterIntent(), intentOf({}, { uid: "U8" })] },
        "clean up U8: go on",
      ],
    },
  }
  describe.each(Object.entries(rules))("nextStep() where %s", (_, rows) => {
    test.each(Object.entries(rows))("%s", (_, [observed, expected]) => {
      const { live = undefined, latest = live ?? liveJob({}) } = { live: liveJob({}), ...observed }
      const seen = { ...observation(), ...observed, live, latest: "latest" in observed ? observed.latest : latest }
      expect(stepText(nextStep(seen, NOW))).toBe(expected)
    })
  })

  test("nextStep() writes the intent for an edit with the finalizers from before the delete", () => {
    const finalizers = ["example.test/mine"]
    const intent = intentOf({}, { metadata: { finalizers }, memory: { worker: "2Gi" } })
    const live = going({ labels: { a: "b" }, finalizers: ["foregroundDeletion"] })
    const step = nextStep({ ...observation(), intents: [intent], live, latest: live }, NOW)
    if (step.do !== "write intent") throw new Error(step.do)
    expect(step.plan.additions).toEqual(intent.additions)
    const { replacement, replaces } = draftOf(step.plan)
    expect(replacement.metadata).toMatchObject({ labels: { a: "b" }, finalizers })
    expect(replaces).toMatchObject({ uid: "U1", resourceVersion: "9" })
  })

  test("nextStep() comes to the same for the same, and changes nothing that it was given", () => {
    for (const [observed] of Object.values(rules).flatMap((rows) => Object.values(rows))) {
      const seen = { ...observation(), ...observed }
      const before = structuredClone(seen)
      expect(nextStep(seen, NOW)).toEqual(nextStep(structuredClone(seen), NOW))
      expect(seen).toEqual(before)
    }
  })

  const taken = 'jobs.batch "load-a" already exists'
  const verdicts: Record<string, [unknown, "admitted" | "rejected" | "thrown"]> = {
    "409 in the server's own words": [new ApiError(409, "AlreadyExists", taken), "admitted"],
    "409 for a Job that is being deleted": [
      new ApiError(409, "AlreadyExists", `object is being deleted: ${taken}`),
      "admitted",
    ],
    "409 for a Job with a generateName": [
      new ApiError(409, "AlreadyExists", `${taken}, the server was not able to generate a unique name for the object`),
      "admitted",
    ],
    "409 with a Retry-After": [new ApiError(409, "AlreadyExists", taken, [], 1_000), "admitted"],
    "409 in a webhook's words (B4)": [
      new ApiError(409, "AlreadyExists", `admission webhook "x.test" denied the request: ${taken}`),
      "rejected",
    ],
    "409 for another Job": [new ApiError(409, "AlreadyExists", 'jobs.batch "load-ab" already exists'), "rejected"],
    "409 for another kind": [new ApiError(409, "AlreadyExists", 'pods "load-a" already exists'), "rejected"],
    "409 Conflict, as of a quota": [new ApiError(409, "Conflict", "the object has been modified"), "thrown"],
    "403 of a quota": [new ApiError(403, "Forbidden", "exceeded quota"), "rejected"],
    "422": [new ApiError(422, "Invalid", "spec: Invalid value"), "rejected"],
    "400 of an unknown field": [new ApiError(400, "BadRequest", "strict decoding error"), "rejected"],
    "401": [new ApiError(401, "Unauthorized", ""), "thrown"],
    "429": [new ApiError(429, "TooManyRequests", ""), "thrown"],
    "500 of a webhook that is down": [new ApiError(500, "InternalError", "failed calling webhook"), "thrown"],
    "503": [new ApiError(503, "ServiceUnavailable", ""), "thrown"],
    "no answer": [new Error("got no answer in 30s"), "thrown"],
  }
  test.each(Object.entries(verdicts))("verdictOf() a dry run answered with %s", (_, [error, expected]) => {
    const verdict = () => {
      try {
        const { admitted } = verdictOf(error, "load-a")
        return admitted ? "admitted" : "rejected"
      } catch (thrown) {
        return thrown === error ? "thrown" : "another error"
      }
    }
    expect(verdict()).toBe(expected)
  })

  test("the new Job carries the counts, and gives up where they reach MAX_RESTARTS", () => {
    const config = settings({ MAX_RESTARTS: "3", RESTART_DELAY: "0" })
    const lives = livesOf(stored(failedJob(), "U1"), Array(5).fill(failedBy("exit:1")), config)
    expect(lives.map((life) => life.do)).toEqual(["restart", "restart", "restart", "give up", "give up"])
  })

  test("isChanged() is false for any Job that we have just created, after any number of restarts", () => {
    always([anyUsersJob(), fc.boolean()], (user, defaulted) => {
      const first = stored(user, "U1", defaulted)
      expect(isChanged(first)).toBe(false)
      const second = nextLife(first, failedBy("oom"), settings(), defaulted)
      const third = nextLife(second, failedBy("exit:1"), settings(), defaulted)
      expect([isChanged(second), isChanged(third)]).toEqual([false, false])
      expect(Number(viewJob(third).annotations[`${PREFIX}restarts`])).toBeGreaterThan(1)
      expect(contentOf(third)).toBe(contentOf(second))
    })
  })

  const changes: Record<string, [Edit, boolean]> = {
    nothing: [{}, false],
    "the annotations of other tools": [
      { annotations: { "kubectl.kubernetes.io/last-applied-configuration": "{}", "argocd/sync": "2" } },
      false,
    ],
    "what the server writes": [{ resourceVersion: "99", generation: 4, managedFields: [] }, false],
    "our own marks": [{ annotations: prefixed({ restarts: "9", "restart-now-done": "1" }) }, false],
    "a label": [{ labels: { app: "load" } }, true],
    "the spec": [{ spec: { parallelism: 2 } }, true],
    "its being suspended": [{ spec: { suspend: true } }, true],
    "an annotation for us": [{ annotations: prefixed({ "max-restarts": "9" }) }, true],
    "restart-now": [{ annotations: prefixed({ "restart-now": "2" }) }, true],
  }
  test.each(Object.entries(changes))("isChanged() after the owner has applied %s", (_, [edit, changed]) => {
    const job = nextLife(stored(failedJob(), "U1"), failedBy("exit:1"), settings())
    expect(isChanged(edited(job, edit))).toBe(changed)
  })

  test("isChanged() does not depend on the order of fields", () => {
    const job = nextLife(
      stored(failedJob({ metadata: { annotations: prefixed({ group: "g", paused: "true" }) } }), "U1"),
      failedBy("oom"),
      settings(),
    )
    expect(isChanged(reversed(job))).toBe(false)
    expect(contentOf(reversed(job))).toBe(contentOf(job))
  })

  test("the counts go on after kubectl apply of the same manifest, and begin anew after another or restart-now", () => {
    const config = settings({ RESTART_RULES: "any=10s..1h" })
    const third = [1, 2].reduce((job) => nextLife(job, failedBy("exit:1"), config), stored(failedJob(), "U1"))
    const waits = (edit: Edit) =>
      livesOf(edited(third, edit), [failedBy("exit:1"), failedBy("exit:1")], config).map(waitOf)
    expect(waits({})).toEqual([40, 80])
    expect(waits({ annotations: { "kubectl.kubernetes.io/last-applied-configuration": "{}" } })).toEqual([40, 80])
    expect(waits({ spec: { backoffLimit: 3 } })).toEqual([10, 20])
    expect(waits({ annotations: prefixed({ "restart-now": "1" }) })).toEqual([0, 20])
  })

  test("restart-now counts once for each value, though it stays on every new Job", () => {
    const job = stored(failedJob({ metadata: { annotations: prefixed({ "restart-now": "1" }) } }), "U1")
    const lives = livesOf(job, Array(3).fill(failedBy("exit:1")), settings())
    expect(lives.map((life) => life.do)).toEqual(["restart", "wait", "wait"])
  })

  const bigger: Record<string, [limit: string | undefined, most: string | undefined, expected: string | undefined]> = {
    "twice as much": ["32Mi", "2Gi", "64Mi"],
    "twice as much, of another unit": ["512M", "2Gi", "1024M"],
    "twice as much, with an exponent": ["1e8", "2Gi", "2e8"],
    "twice as many bytes": ["128974848", "2Gi", "257949696"],
    "twice as much of what is no whole number": ["1.5Gi", "4Gi", "3Gi"],
    "twice as much, just the most": ["1Gi", "2Gi", "2Gi"],
    "the most, not more": ["1.5Gi", "2Gi", "2Gi"],
    "the most, in its own unit": ["768Mi", "1.25Gi", "1.25Gi"],
    "the most, as people write it": ["1.5Gi", ' "2Gi"\n', "2Gi"],
    "no more at the most": ["2Gi", "2048Mi", undefined],
    "no more above the most": ["3Gi", "2Gi", undefined],
    "no more without the annotation": ["1Gi", undefined, undefined],
    "no more without a limit": [undefined, "2Gi", undefined],
    "no more with a limit of 0, which limits nothing": ["0", "2Gi", undefined],
    "no more by a wrong annotation": ["1Gi", "2GB", undefined],
    "no more by an annotation of 0": ["1Gi", "0", undefined],
  }
  test.each(Object.entries(bigger))("moreMemory() gives the killed container %s", (_, [limit, most, expected]) => {
    const job = hungryJob({ worker: limit === undefined ? {} : { limits: { memory: limit } } }, most)
    expect(moreMemory(job, failedBy("oom", [], ["worker"]))).toEqual(expected === undefined ? {} : { worker: expected })
  })

  test("moreMemory() leaves a container alone whose name is that of a property of every object", () => {
    const resources = { limits: { memory: "1Gi" } }
    const live = stored(hungryJob({ worker: resources, constructor: resources }, "4Gi"), "U1")
    const memory = moreMemory(live, failedBy("oom", [], ["worker"]))
    const { replacement } = draftOf({ live, additions: { annotations: {}, memory }, dueAt: undefined })
    const limits = replacement.spec?.template.spec?.containers.map((one) => one.resources?.limits?.memory)
    expect(limits).toEqual(["2Gi", "1Gi"])
  })

  test("moreMemory() is for the containers that were killed, init ones too, and for no other", () => {
    const memory = { limits: { memory: "1Gi" } }
    const job = hungryJob({ worker: memory, mesh: memory }, "4Gi", { fetch: memory, idle: memory })
    expect(moreMemory(job, failedBy("oom", [], ["worker", "fetch"]))).toEqual({ fetch: "2Gi", worker: "2Gi" })
    expect(moreMemory(job, failedBy("exit:137"))).toEqual({})
  })

  test("an intent has the raised memory for the new Job: an equal request follows, and the first value stays", () => {
    const resources = { limits: { memory: "1Gi", cpu: "1" }, requests: { memory: "1Gi", cpu: "500m" } }
    const job = hungryJob(
      { worker: resources, mesh: { limits: { memory: "2Gi" }, requests: { memory: "1Gi" } }, plain: {} },
      "8Gi",
    )
    const live = stored(job, "U1")
    const memory = moreMemory(live, failedBy("oom", [], ["worker", "mesh", "plain"]))
    const intent = readIntent(
      stored(intentFor(draftOf({ live, additions: { annotations: {}, memory }, dueAt: undefined })), "U7"),
    ) as Intent
    expect(resourcesOf(intent.replacement)).toEqual({
      worker: { limits: { memory: "2Gi", cpu: "1" }, requests: { memory: "2Gi", cpu: "500m" } },
      mesh: { limits: { memory: "4Gi" }, requests: { memory: "1Gi" } },
      plain: {},
    })
    expect(intent.replacement.metadata?.annotations).toMatchObject(
      prefixed({ "oom-memory-first": "worker=1Gi,mesh=2Gi" }),
    )
    expect([intent.fingerprint, intent.additions.memory]).toEqual([fingerprintOf(live), memory])
  })

  test("an edit while the old Job goes is seen against what stood, without the raised memory, and gets it too", () => {
    const live = stored(hungryJob({ worker: { limits: { memory: "1Gi" } } }, "8Gi"), "U1")
    const additions = { annotations: {}, memory: { worker: "2Gi" } }
    const intent = readIntent(stored(intentFor(draftOf({ live, additions, dueAt: undefined })), "U7")) as Intent
    const step = (job: Job) => nextStep({ ...observation(), intents: [intent], live: job, latest: job }, NOW)
    const terminating = edited(live, { ...deleted, resourceVersion: "9" })
    expect(stepText(step(terminating))).toBe("wait for the old Job to go")
    const write = step(edited(terminating, { labels: { app: "load" } }))
    if (write.do !== "write intent") throw new Error(write.do)
    expect(resourcesOf(draftOf(write.plan).replacement)).toEqual(resourcesOf(intent.replacement))
  })

  test("memory doubles with each kill up to the most, the first values stay, and the counts go on", () => {
    const job = stored(
      hungryJob({ worker: { limits: { memory: "384Mi" } }, mesh: { limits: { memory: "1Gi" } } }, "2000Mi"),
      "U1",
    )
    const kills = ["worker", "worker", "mesh", "worker", "worker"].map((name) => failedBy("oom", [], [name]))
    let life = job
    const limits = kills.map((failure) => {
      life = nextLife(life, failure, settings())
      expect(isChanged(life)).toBe(false)
      return Object.values(resourcesOf(life)).map(
        (resources) => (resources as { limits: { memory: string } }).limits.memory,
      )
    })
    expect(limits.map(String)).toEqual(["768Mi,1Gi", "1536Mi,1Gi", "1536Mi,2000Mi", "2000Mi,2000Mi", "2000Mi,2000Mi"])
    expect(viewJob(life).annotations).toMatchObject(
      prefixed({ "oom-memory-first": "worker=384Mi,mesh=1Gi", restarts: "5" }),
    )
  })

  test("isChanged() compares memory by its amount, however the server writes it", () => {
    const grown = nextLife(
      stored(hungryJob({ worker: { limits: { memory: "512Mi" } } }, "2Gi"), "U1"),
      failedBy("oom", [], ["worker"]),
      settings(),
    )
    expect(resourcesOf(grown)).toEqual({ worker: { limits: { memory: "1Gi" } } })
    expect(isChanged(grown)).toBe(false)
    const text = JSON.stringify(grown)
    expect(isChanged(JSON.parse(text.replace('"memory":"1Gi"', '"memory":"1025Mi"')))).toBe(true)
  })

  test("newestFirst() sorts by version as a number, then at once before later, without those that go", () => {
    const all = [
      intentOf({}, { version: "9", uid: "U9" }),
      intentOf({}, { version: "10", uid: "U10-later", dueAt: NOW + HOUR }),
      intentOf({}, { version: "10", uid: "U10-soon", dueAt: NOW }),
      intentOf({}, { version: "10", uid: "U10" }),
      { ...intentOf({}, { version: "1000", uid: "U1000" }), deleting: true },
      { ...intentOf({}, { version: "11", uid: "U11" }), unsafe: true },
    ]
    expect(newestFirst(all).map(({ uid }) => uid)).toEqual(["U11", "U10", "U10-soon", "U10-later", "U9"])
    expect(newestFirst([])).toEqual([])
    always([fc.array(fc.bigInt({ min: 1n, max: 2n ** 64n }), { minLength: 1 })], (versions) => {
      const most = versions.toSorted((a, b) => (a < b ? -1 : a > b ? 1 : 0)).at(-1)
      const intents = versions.map((version) => ({ ...intentOf(), jobVersion: String(version) }))
      expect(newestFirst(intents)[0]?.jobVersion).toBe(String(most))
    })
  })

  test("newestFirst() has one order for two that tie, as those of 1.0.0 and this version may", () => {
    const [ours, v1] = [
      { ...intentOf(), name: "load-a-restart-2" },
      { ...intentOf(), name: "load-a-restart-1" },
    ]
    expect(newestFirst([ours, v1])).toEqual(newestFirst([v1, ours]))
  })

  const controlled = (uid: string) => ({ ownerReferences: [owner(uid)] })
  const pods: Record<string, [Pod, generated: boolean, manual: boolean]> = {
    "owned by the old Job": [{ metadata: controlled("U1"), status: { phase: "Running" } }, true, true],
    "owned by the old Job and ended (B16)": [{ metadata: controlled("U1"), status: { phase: "Failed" } }, true, true],
    "owned by another Job": [{ metadata: controlled("U2"), status: { phase: "Running" } }, false, false],
    "an orphan that runs (A06, C2)": [{ metadata: {}, status: { phase: "Running" } }, true, true],
    "an orphan that has ended": [{ metadata: {}, status: { phase: "Succeeded" } }, false, true],
    "an orphan without status": [{}, true, true],
  }
  test.each(Object.entries(pods))("blocksReplacement() for a pod that is %s", (_, [aPod, generated, manual]) => {
    const withSelector = intentOf({ manualSelector: true, selector: { matchLabels: { app: "x" } } })
    const blocks = (intent: Intent) => blocksReplacement(viewPod(aPod), intent)
    expect({ generated: blocks(intentOf()), manual: blocks(withSelector) }).toEqual({ generated, manual })
  })
  test("blocksReplacement() is false for a pod that is gone", () =>
    expect(blocksReplacement({ ...viewPod({ metadata: controlled("U1") }), gone: true }, intentOf())).toBe(false))

  test("blockersText() names finalizers, pods, their phases, nodes and finalizers (J04)", () =>
    expect(
      blockersText([
        { finalizers: ["foregroundDeletion", "a/b"] },
        { pod: "p1", phase: "Running", node: "n1", finalizers: ["c/d"] },
        { pod: "p2", phase: "Pending", node: undefined, finalizers: [] },
      ]),
    ).toBe("finalizers foregroundDeletion, a/b; pod p1 (Running, node n1, finalizers c/d); pod p2 (Pending)"))

  test("podSelector() finds the old Job's pods by uid, or by a manual selector", () => {
    expect(podSelector(intentOf())).toBe("batch.kubernetes.io/controller-uid=U1")
    const matchExpressions = [
      { key: "a", operator: "In", values: ["b", "c"] },
      { key: "d", operator: "NotIn", values: ["e"] },
      { key: "f", operator: "Exists", values: [] },
      { key: "g", operator: "DoesNotExist" },
    ]
    const text = podSelector(
      intentOf({ manualSelector: true, selector: { matchLabels: { app: "x" }, matchExpressions } }),
    )
    expect(text).toBe("app=x,a in (b,c),d notin (e),f,!g")
    expect(matches(parseSelector(text), { app: "x", a: "b", f: "" })).toBe(true)
  })
})

describe("1 Text", () => {
  test.each([
    ["given_up", "failed", { do: "give up", because: "" }, 0, false],
    ["waiting", "failed", { do: "wait", dueAt: 1, because: "" }, 0, false],
    ["waiting", "failed", { do: "restart", dueAt: 1, because: "" }, 0, false],
    ["rejected", "failed", { do: "wait", dueAt: 1, because: "" }, 2, false],
    ["left_alone", "failed", { do: "leave", because: "", healthy: false }, 0, false],
    ["deleting", "running", { do: "leave", because: "", healthy: true }, 0, true],
    ["running", "running", { do: "leave", because: "", healthy: true }, 0, false],
    ["failed", "failed", undefined, 0, false],
  ] as const)("stateOf() is %s", (state, phase, decision, rejections, deleting) => {
    expect(stateOf({ phase, deleting } as Parameters<typeof stateOf>[0], decision, rejections)).toBe(state)
  })

  test("printable() lets nothing through that breaks a line, forges a record or drives a terminal", () => {
    const nasty = [
      ..."\n|\r|\u0085|\u2028|\u2029|\u001b[2J|\u009b2J|\u0007|\0|\u202e".split("|"),
      ..."\u2066|\u200b|\u200d|\uFEFF|\u00AD|\ud800|\u{E0041}".split("|"),
    ]
    for (const text of nasty) expect(printable(`a${text}b`)).toMatch(/^a\\u\{[0-9a-f]+\}(\[?2J)?b$/)
    expect(printable("\u001b[31mred\ttab ümläut 漢字 😀")).toBe("\\u{1b}[31mred tab ümläut 漢字 😀")
    always(
      [fc.string({ unit: fc.oneof(fc.constantFrom(...nasty), fc.string({ unit: "binary", maxLength: 3 })) })],
      (text) => {
        expect(printable(text)).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u)
        expect(printable(printable(text))).toBe(printable(text))
        expect(
          textRecord(NOW, "info", text, { lines: [text] }).split(/\r\n|[\n\r\v\f\u0085\u2028\u2029]/),
        ).toHaveLength(3)
        expect(jsonRecord(NOW, "info", text, { lines: [text] }).split(/[\n\r\u0085\u2028\u2029]/)).toHaveLength(2)
      },
    )
  })

  test("jsonText() makes keys harmless like values (J15)", () => {
    const text = jsonText({ "a\u009b2J": 1, nested: [{ "b\u202e": "c\u202e" }] })
    expect(text.replaceAll("\n", "")).not.toMatch(/[\p{Cc}\p{Cf}]/u)
    expect(Object.keys(JSON.parse(text))).toEqual(["a\\u{9b}2J", "nested"])
  })

  // C13: each with its secret planted as {{...}}; nothing of that may be left.
  const secrets = [
    ...String.raw`
      GET /services/rest?api_key={{s3cr3t-demo}}&format=json
      oauth_token={{72157720-a1b2c3}}&oauth_verifier={{f00ba4}}
      oauth_signature="{{tR3%2BTy81lMeYAr%2FFid0kMTYa%2FWM%3D}}" || Authorization: Bearer {{abc.DEF-123_x}}
      authorization: basic {{dXNlcjpwYXNz}}
      Proxy-Authorization: Basic {{dXNlcjpwYXNz}}
      curl -H "Authorization: Bearer {{abcdef012345}}" https://example.test
      Authorization: OAuth oauth_consumer_key="{{ck-123}}", oauth_token="{{tok-456}}", oauth_signature="{{sig%3D}}"
      Cookie: a=b; c={{0a1b2c3d}}
      Authorization: Digest username="{{Mufasa}}", realm="x", response="{{6629fae4}}"
      {"Authorization":"Bearer {{short}}"}
      {"headers": {"Authorization": "OAuth oauth_token=\"{{tok-456}}\""}}
      {'Authorization': 'Token {{abc123}}', 'Accept': '*/*'}
      sent Bearer {{eyabcdefgh12345}} along || "password": "{{x1 y1}}"
      {"password":"{{with \"quotes\" inside}}","user":"me"} || 'token': '{{x1 z1}}'
      password={{hunter2}} user=me || PASSWORD: {{hunter2}} || passwd={{hunter2}} || db_password = {{hunter2}}
      passphrase => '{{open sesame}}'
      MYSQL_PWD={{hunter2}} || client_secret: {{s3cr3t-demo}} || AWS_SECRET_ACCESS_KEY={{wJalrXUtnFEMI/K7MDENG}}
      X-Api-Key: {{0a1b2c3d}}
      API key: {{0a1b2c3d}} || apiKey: {{0a1b2c3d}} || refresh_token={{1//0gabc}}
      Set-Cookie: session={{0a1b2c3d}}; Path=/ || private_key='{{0x0a1b}}'
      run --password {{hunter2}} --verbose || run --api-key='{{hunter two}}' || run --db-password {{hunter2}}
      run -token "{{hunter two}}"
      DB_PASS={{hunter2}} || "smtp-pass": "{{hunter two}}" || run --pass {{hunter2}} --verbose
      https://x.test/?user=me&pass={{hunter2}}&x=1
      DefaultEndpointsProtocol=https;AccountKey={{0a1b2c3d==}};EndpointSuffix=x || ENCRYPTION_KEY: {{0a1b2c3d}}
      https://x.test/b?sv=1&sig={{a%2Fb%3D}}
      https://user:{{pass}}@example.test/x || https://user:{{p1@ss}}@example.test/x
      postgres://me:{{p%40ss!}}@db:5432/x || credentials: {{hunter2}}
      https://{{ghp_0a1b2c3d}}@example.test/repo.git || jwt {{eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP}}
      token := "{{hunter two}}"
      api_key%3D{{s3cr3t-demo}}%26x || %22password%22%3A%22{{hunter2}}%22
      {\"password\":\"{{hunter two}}\",\"user\":\"me\"}
      "{\\\"token\\\": \\\"{{hunter two}}\\\"}" || {"name":"API_KEY","value":"{{s3cr3t-demo}}"}
      <token>{{45-76598454353455}}</token>
      token=b'{{hunter two}}' || password=SecretStr('{{hunter two}}') || password: "{{never closed}}
      Invalid value: core.EnvVar{Value:"{{x1 y1}}"}
      "-----BEGIN PRIVATE KEY-----\n{{MIIEpAIBAAKCAQEA}}\n-----END PRIVATE KEY-----\n"
      -----BEGIN OPENSSH PRIVATE KEY----- {{b3BlbnNzaC1rZXk}}`
      .trim()
      .split(/ \|\| |\n +/),
    "-----BEGIN RSA PRIVATE KEY-----\n{{MIIEpAIBAAKCAQEA}}\n{{qwertyuiop}}\n-----END RSA PRIVATE KEY-----",
    "{{AAKCAQEAqwertyuiop+/=}}\n{{b3BlbnNzaC1rZXk}}\n-----END PRIVATE KEY-----\nafter",
    "password:\n  {{hunter2}}",
    "token =\n\t{{s3cr3t-demo}}",
    '"password":\n"{{x1 y1}}"',
    '"password":\n\n  "{{x1 y1}}"',
    "Authorization:\n  Bearer {{short}}",
    "sent Bearer\n  {{eyabcdefgh12345}}",
    "run --password \n  {{hunter2}}",
    "run --password\n'{{hunter two}}'",
  ]
  test.each(secrets)("maskSecrets() leaves nothing of the secret in %j (C13)", (marked) => {
    const masked = maskSecrets(marked.replaceAll(/\{\{|\}\}/g, ""))
    expect(masked).toContain("***")
    for (const [, secret = ""] of marked.matchAll(/\{\{(.*?)\}\}/g))
      for (const word of secret.split(/[\s"\\@]+/).filter((part) => part.length > 1)) expect(masked).not.toContain(word)
    expect(textRecord(NOW, "info", marked.replaceAll(/\{\{|\}\}/g, ""))).toContain("***")
    expect(jsonRecord(NOW, "info", "x", { lines: [marked.replaceAll(/\{\{|\}\}/g, "")] })).toContain("***")
  })

  const ordinary =
    `2026-03-01T12:00:00Z 429 Too Many Requests, retry in 60 s ¦ Error: getaddrinfo ENOTFOUND api.flickr.com:443
    got 12 tokens, bucket empty ¦ signature verified, password accepted
    Unexpected token '<', "<!DOCTYPE "... is not valid JSON
    KeyError: 'photo' in row 17 ¦ at main (/app/src/token.ts:12:5) ¦ File "/app/secrets.py", line 45
    password_reset.go:31 +0x1d
    one-time-password required, per-token bucket size 5
    https://example.test/?email=a@b.test and mailto:me@example.test
    see "https://example.test","me@example.test" ¦ git clone git@github.com:owner/repo.git
    run --password-stdin --username me
    passed: 12, failed: 3, path=/tmp/x, key=value ¦ tests pass: 5, fail: 1 ¦ by_passing: 3, compass=north
    config=a, sig=11 ¦ authorization is required ¦ Basic authentication of bearer tokens
    -----BEGIN CERTIFICATE----- ¦ author: me, cookies are off`.split(/ ¦ |\n +/)
  test.each([
    ...ordinary,
    "Could not use the credentials:\nHTTP 429 too many requests, Retry-After: 25",
    "flickr.AuthError: bad token:\r\nquota exceeded for user 7",
    "Token: \n\nRetry after 30 minutes",
    "Downloading with token =\nfailed: disk full",
    "invalid token\n=== second try ===",
    "Set-Cookie:\nquota exceeded",
    "it wants Basic\n2026-03-01T12:00:00Z quota exceeded",
    "usage: run --password\nError: it is missing",
  ])("maskSecrets() leaves the ordinary line %j alone", (line) => expect(maskSecrets(line)).toBe(line))

  test("maskSecrets() masks a value of any kind, and nothing before it", () => {
    const keys = fc.constantFrom(
      ..."api_key oauth_token oauth_signature password CLIENT_SECRET x-api-key accessKey db.password".split(" "),
    )
    const forms: ((key: string, value: string) => string)[] = [
      (key, value) => `${key}=${value}`,
      (key, value) => `?${key}=${value}&format=json`,
      (key, value) => `"${key}": "${value}", "user": "me"`,
      (key, value) => `{'${key}': '${value}'}`,
      (key, value) => `${key} => "${value}"`,
      (key, value) => JSON.stringify(JSON.stringify({ [key]: value, user: "me" })),
      (key, value) => encodeURIComponent(JSON.stringify({ [key]: value })),
      (key, value) => `--${key} ${value}`,
      (_, value) => `Authorization: Bearer ${value}`,
      (_, value) => `https://user:${value}@example.test/`,
    ]
    const values = fc.stringMatching(/^[A-Za-z0-9_.~+*!$][A-Za-z0-9_.~+*!$-]{5,19}$/)
    always([keys, fc.constantFrom(...forms), values, fc.lorem()], (key, form, secret, words) => {
      fc.pre(!`${words} ${form(key, "")}`.includes(secret))
      const masked = maskSecrets(`${words} ${form(key, secret)}`)
      expect(masked).not.toContain(secret)
      expect(masked).toStartWith(`${words} `)
      expect(maskSecrets(masked)).toStartWith(`${words} `)
    })
  })

  const long = [
    'eyJaaaaaaaa-|eyJaaaaaaaa.|token|token |token=|token="|token=\\|token=\\"|a://|a://b|-----BEGIN |A|authorization:',
    "bearer |bearer a|-|--token-|\"|\\|'|api key |-----END |x=| |\n|token:\n|token:\n |--token\n |%22|<token>|<token",
    '-----BEGIN A PRIVATE KEY-----|cookie=\\"|authorization: ="|secret.',
  ].flatMap((pieces) => pieces.split("|"))
  test.each(long)("maskSecrets() takes time in line with the length of %j over and over", (piece) => {
    for (const before of ["", "password: ", 'token="', '"value": "', "authorization: "])
      expectLinear(300_000 / piece.length, (length) => maskSecrets(before + piece.repeat(length)))
  })

  test("durationText() is short and exact", () => {
    const rows = "0 0s|250 250ms|999 999ms|1000 1s|90000 1m30s|5400000 1h30m|86400000 1d|86401000 1d1s"
    const more = "3599999 1h|-5 -5ms|-90000 -1m30s"
    for (const [ms, text] of `${rows}|${more}`.split("|").map((row) => row.split(" ")))
      expect(durationText(Number(ms))).toBe(text as string)
  })

  test.each([
    ["ECONNREFUSED: Unable to connect. Is the computer able to access the url?", "ECONNREFUSED: Unable to connect."],
    ["ENETUNREACH: Was there a typo in the url or port?", "ENETUNREACH"],
    ["socket closed. For more information, pass `verbose: true` in the second argument to fetch()", "socket closed."],
  ])("messageOf() leaves out Bun's advice to programmers: %s", (text, expected) => {
    expect(messageOf(new Error(text))).toBe(expected)
  })

  test("messageOf() has what caused an error, and no stack, whatever was thrown", () => {
    expect(messageOf(new Error("a", { cause: new Error("b", { cause: "c" }) }))).toBe("a: b: c")
    expect(messageOf(Object.assign(new Error(""), { code: "ECONNREFUSED" }))).toBe("ECONNREFUSED")
    expect([messageOf("text"), messageOf(null), messageOf(undefined)]).toEqual(["text", "null", "undefined"])
  })

  test("textRecord() is one line with its details indented below", () => {
    expect(textRecord(NOW, "warning", "load-a: failed", { lines: ["pod p", "  token=x"] })).toBe(
      "2026-03-01 12:00:00.000Z | WARNING  | load-a: failed\n    pod p\n      token=***\n",
    )
  })

  test("jsonRecord() is one JSON object a line, masked as deep as it goes", () => {
    const record = jsonRecord(NOW, "info", "api_key=x", {
      job: "a/b",
      lines: ["ok", "password=y"],
      deep: { url: "https://u:p@h" },
      n: 3,
    })
    expect(record).toEndWith("}\n")
    expect(JSON.parse(record)).toEqual({
      ...{ time: "2026-03-01T12:00:00.000Z", level: "info", message: "api_key=***", job: "a/b" },
      ...{ lines: ["ok", "password=***"], deep: { url: "https://***@h" }, n: 3 },
    })
  })

  const unknown = "worker: exit code not known, ContainerStatusUnknown"
  const oom = `exit code 137, OOMKilled${RAN}`
  const init = { init: [oomKilled("fetch")], containers: [waiting("worker", "PodInitializing")] }
  const stuck = { phase: "Pending", containers: [waiting("worker", "CreateContainerConfigError", "no secret")] }
  const lost = { phase: "Running", reason: "NodeLost", containers: [running("worker")] }
  const indexed = { index: "1", containers: [exited("worker", 42, { restarts: 2, signal: 9 })] }
  const evidence: Record<string, [PodParts, string]> = {
    "two containers (B14)": [
      { containers: [exited("mesh", 0), oomKilled("worker")] },
      `Failed|mesh: exit code 0${RAN}|worker: ${oom}`,
    ],
    "an init container (B04)": [init, `Failed|init fetch: ${oom}|worker: never started, PodInitializing`],
    "Evicted (B06)": [
      { reason: "Evicted", message: "disk" },
      "Failed, Evicted, disk|  no container known; exit code unknown",
    ],
    "year 1 (B08)": [{ containers: [statusUnknown("0001-01-01T00:00:00Z")] }, `Failed|${unknown}`],
    "null times (B08)": [{ containers: [statusUnknown(null)] }, `Failed|${unknown}`],
    "what could not start (B12)": [stuck, "Pending|worker: never started, CreateContainerConfigError, no secret"],
    "a lost node (B16)": [lost, "Running, NodeLost|worker: still running, exit code not known"],
    "an index (A17)": [indexed, `(index 1) Failed|worker: exit code 42, signal 9${RAN}, 2 restarts`],
  }
  test.each(Object.entries(evidence))("evidenceLines() tells of %s", (_, [parts, lines]) => {
    const said = evidenceLines({ pods: [pod(parts)], logs: new Map(), morePods: 0 }).join("\n")
    const headless = said.replace(/^pod p( \(index \d+\))? \((.*)\)$/m, (_, index = "", facts) =>
      `${index} ${facts}`.trim(),
    )
    const short = headless.replaceAll(/^ {2}(init )?container (\w+) \((.*)\)$/gm, "$1$2: $3")
    expect(short).toBe(lines.replaceAll("|", "\n"))
  })
  test("evidenceLines() says that no pods are left (B01)", () => {
    expect(evidenceLines({ pods: [], logs: new Map(), morePods: 0 })).toEqual(["no pods left"])
  })

  test("evidenceLines() has each container's last lines below it, and counts the pods beyond", () => {
    const logs = new Map([
      ["uid-p0/fetch", { lines: ["one", "two"] }],
      ["uid-p0/worker", { lines: [], note: "log empty, it may have been rotated" }],
    ])
    const view = pod({
      name: "p0",
      init: [exited("fetch", 1, { minute: 3 })],
      containers: [waiting("worker", "PodInitializing")],
    })
    expect(evidenceLines({ pods: [view], logs, morePods: 7 }).slice(2)).toEqual([
      "    | one",
      "    | two",
      "  container worker (never started, PodInitializing)",
      "    (log empty, it may have been rotated)",
      "and 7 more pods",
    ])
  })

  test.each([
    ["a quick answer", 0, 100, 0, 450],
    ["a quick one of a server an hour ahead", 0, 100, HOUR, HOUR + 450],
    ["a slow one of a server an hour behind", 0, 10_000, -HOUR, -HOUR - 4_500],
    ["a slow one of a server that may be right", 0, 10_000, 5_000, undefined],
    ["one that came before it was sent", 5_000, 0, 0, undefined],
  ])("skewFrom() knows from %s what it tells", (_, sentMs, receivedMs, aheadMs, skewMs) => {
    expect(skewFrom(new Date(NOW + aheadMs).toUTCString(), NOW + sentMs, NOW + receivedMs)).toBe(skewMs)
  })

  test.each([
    ["tells nothing where it agrees with what is known", HOUR, HOUR, undefined],
    ["tells that what is known is wrong: the clock was set", HOUR, 5_000, 500],
  ])("skewFrom() a slow answer %s", (_, knownMs, aheadMs, skewMs) => {
    expect(skewFrom(new Date(NOW + aheadMs).toUTCString(), NOW, NOW + 10_000, knownMs)).toBe(skewMs)
  })

  // What kubelet 1.32 to 1.36 answers with status 200, from its source, with what a %v may be.
  const kubeletMessages = [
    "unable to retrieve container logs for containerd://abc",
    "container status is nil",
    'failed to try resolving symlinks in path "/var/log/pods/a_b/main/0.log": lstat /var/log/pods/a_b: no such file',
    'failed to open log file "/var/log/pods/a/0.log": open /var/log/pods/a/0.log: too many open files',
    'failed to tail 20 lines of log file "/x/0.log": input/output error',
    'failed to seek 0 in log file "/x/0.log": invalid argument',
    'failed to read log file "/x/0.log": input/output error',
    'failed to get parse function: unsupported log format: "\\x00\\x00\\n"',
    'container "main" in pod "p" is not available',
    'container "main" in pod "p" is terminated',
    'container "main" in pod "p" is waiting to start: image can\'t be pulled',
    'container "main" in pod "p" is waiting to start - no logs yet',
    'previous terminated container "main" in pod "p" not found',
    'container "main" not found in pod "p"',
    'pod "p" cannot be found - no logs available',
    'pod "p" does not exist',
  ]
  test.each(kubeletMessages)(
    "tailOf() takes the kubelet's own message for a note, never for a line: %s (C06, J08)",
    (message) => {
      const isNote = { note: `log not available: ${message}`, final: false }
      expect(tailOf(message, 20)).toEqual({ lines: [], ...isNote })
      expect(tailOf(`one\ntwo\n${message}`, 20)).toEqual({ lines: ["one", "two"], ...isNote })
      expect(tailOf(`one\n${message}\ntwo\n`, 20)).toEqual({ lines: ["one", message, "two"] })
      expect(tailOf(`${message}\n`, 20)).toEqual({ lines: [message] })
    },
  )

  const rendered: Record<string, [raw: string, shown: string]> = {
    "a colour": ["\u001b[31mError:\u001b[0m quota", "Error: quota"],
    "colours by 256 and true colour": ["\u001b[38;5;196ma\u001b[38:2::1:2:3mb\u001b[m", "ab"],
    "a title and a link (OSC), ended by BEL or ST": ["\u001b]0;title\u0007a\u001b]8;;https://x.test\u001b\\b", "ab"],
    "a carriage return": ["10%\r20%\rdone", "done"],
    "a shorter redraw": ["Uploading 100%\rdone", "done"],
    "a redraw that erases the rest": ["Uploading 100%\r\u001b[Kdone", "done"],
    "a line that is erased whole": ["Uploading 100%\u001b[2K\rdone", "done"],
    "an end after the redraw": ["Uploading 100%\rdone\u001b[K", "done"],
    "a carriage return at the end": ["done\r", "done"],
    "a redraw that erases all": ["Uploading 100%\r\u001b[K", "Uploading 100%"],
    "a move to the first column": ["10%\u001b[1Gdone\u001b[0G", "done"],
    "moves to other lines": ["\u001b[2Aone\u001b[1;1Htwo\u001b[?25l", "onetwo"],
    "wide characters": ["日本\r本日", "本日"],
    "a combining character": ["e\u0301\rE", "E"],
    "a character set and a reset": ["\u001b(Bdone\u001bc", "done"],
    "an escape that is none": ["a\u001b日\u001b", "a日"],
    "other control characters": ["a\u0000b\bc\u000bd", "a\\u{0}b\\u{8}c\\u{b}d"],
  }
  test.each(Object.entries(rendered))("tailOf() shows what was drawn last: %s (H39)", (_, [raw, shown]) => {
    expect(tailOf(`${raw}\n`, 1).lines).toEqual([shown])
  })

  test("tailOf() keeps the error at the end of a progress bar of 20 KB (H39)", () => {
    const states = Array.from({ length: 300 }, (_, i) => `Uploading [${"#".repeat(50)}] ${i} of 300 files`)
    const log = `${states.join("\r")}\r\u001b[KUpload failed: quota has been exceeded\n`
    expect(tailOf(log, 20).lines).toEqual(["Upload failed: quota has been exceeded"])
  })

  test("tailOf() keeps both ends of a long line, marks what is left out, and leaves no half of a character", () => {
    const [line = ""] = tailOf(`BEGIN${"😀".repeat(2_000)}END`, 20).lines
    expect(line).toMatch(/^BEGIN😀+\ufffd? … \d+ characters left out … \ufffd?😀+END$/u)
    const left = Number(/(\d+) characters/.exec(line)?.[1])
    expect(line.length - ` … ${left} characters left out … `.length + left).toBe(8 + 4_000)
  })

  test("renderLine() takes time in line with the length of the text", () => {
    for (const piece of ["a\r", "\b", "\u001b[1A", "\u001b[", "\u001b]", "\u001b[9999C", "日\r"])
      expectLinear(40_000, (length) => renderLine(piece.repeat(length / 4)))
  })

  test("tailOf() takes time in line with the length of the log", () => {
    const logs = [
      ["", "\r", "x"],
      ["", "\n", "x"],
      ['failed to open log file "', '": ', "\r"],
      ["failed to seek ", "1", ""],
      ['container "', '" in pod "', ""],
      ['container "a" in pod "b" is waiting to start', " a", "\r"],
    ] as const
    for (const [before, piece, after] of logs)
      expectLinear(100_000 / piece.length, (length) => tailOf(before + piece.repeat(length) + after, 20))
  })

  test("tailOf() keeps the last lines, says so, and takes an empty log for no error (C08, C10)", () => {
    expect(tailOf("", 20)).toEqual({ lines: [], note: "log empty, it may have been rotated" })
    expect(tailOf("a\nb\nc", 20)).toEqual({ lines: ["a", "b", "c"] })
    expect(tailOf("a\r\nb\r\n", 20)).toEqual({ lines: ["a", "b"] })
    const log = Array.from({ length: 500 }, (_, i) => `line ${i + 1}\n`).join("")
    expect(tailOf(log, 20)).toMatchObject({
      lines: { length: 20, 0: "line 481", 19: "line 500" },
      note: "last 20 lines",
    })
    expect(tailOf(log, 400).lines[99]).toBe("line 200")
  })

  test("tailOf() cuts long lines and says where a log was cut (C05)", () => {
    const { lines, note } = tailOf(`${"x".repeat(100_000)}\nend`, 20, true)
    expect([lines, note]).toEqual([
      [`${"x".repeat(500)} … 99000 characters left out … ${"x".repeat(500)}`, "end"],
      "log too long to read whole, cut",
    ])
  })

  test("tailOf() cuts what looks like a long message of the kubelet, too", () => {
    const { lines, note } = tailOf(`unable to retrieve container logs for ${"x".repeat(200_000)}`, 20)
    expect(lines).toEqual([])
    expect(note).toMatch(/^log not available: unable to retrieve .*x … \d+ characters left out … x+$/)
  })

  test("tailOf() masks a secret that spans lines or stands at the cut, and makes all text printable (C13)", () => {
    const key = `-----BEGIN PRIVATE KEY-----\n${"MIIEpAIBAAKCAQEA\n".repeat(40)}-----END PRIVATE KEY-----\ndone`
    expect(tailOf(key, 5).lines).toEqual(["***", "done"])
    expect(tailOf(key.split("\n").slice(-8).join("\n"), 20).lines).toEqual(["***", "done"])
    expect(tailOf(`${"x".repeat(990)} password=hunter2`, 5).lines.join()).not.toContain("hunt")
    expect(tailOf("\u001b[2Jgone\u2028forged", 5).lines).toEqual(["gone\\u{2028}forged"])
  })

  const decisions: Record<string, [ReturnType<typeof decide>, text: string]> = {
    "left alone": [{ do: "leave", because: "it is running", healthy: true }, "left alone: it is running"],
    "given up": [
      { do: "give up", because: "rule exit:7=never" },
      `given up: rule exit:7=never; to go on, set a new ${PREFIX}restart-now on it, or delete it and apply it again`,
    ],
    waited: [
      { do: "wait", dueAt: NOW + 90 * MINUTE, because: "rule exit:3=10s..6h, failure 9 in a row" },
      "to be restarted at 2026-03-01T13:30:00Z: rule exit:3=10s..6h, failure 9 in a row",
    ],
    overdue: [
      { do: "restart", dueAt: NOW - HOUR, because: "RESTART_DELAY 1h" },
      "to be restarted at 2026-03-01T11:00:00Z: RESTART_DELAY 1h",
    ],
  }
  test.each(Object.entries(decisions))("decisionText() where a Job is %s", (_, [decision, text]) => {
    expect(decisionText(decision)).toBe(text)
  })

  test("alignedRows() starts each column below its head", () => {
    const rows = [
      ["JOB", "STATE", "WHY"],
      ["a-long-name", "waiting", "RESTART_DELAY 1h"],
      ["b", "given_up", ""],
    ]
    const lines = ["JOB          STATE     WHY", "a-long-name  waiting   RESTART_DELAY 1h", "b            given_up"]
    expect(alignedRows(rows)).toEqual(lines)
  })

  test("alignedRows() counts wide letters as two, and makes text printable", () => {
    expect(
      alignedRows([
        ["日本", "x"],
        ["a", "\u001b[2J"],
      ]),
    ).toEqual(["日本  x", "a     \\u{1b}[2J"])
    expect(alignedRows([])).toEqual([])
  })

  test("eventFor() is a core Event on the Job by its uid, so that kubectl describe shows it", () => {
    const job = viewJob(failedJob())
    expect(eventFor(job, "error", "GivenUp", "given up", NOW)).toEqual({
      ...{ apiVersion: "v1", kind: "Event", type: "Warning", reason: "GivenUp", message: "given up" },
      metadata: { namespace: "batch-a", generateName: "load-a." },
      involvedObject: { apiVersion: "batch/v1", kind: "Job", namespace: "batch-a", name: "load-a", uid: "U1" },
      source: { component: "flickr-immich-k8s-sync-operator" },
      ...{ firstTimestamp: "2026-03-01T12:00:00Z", lastTimestamp: "2026-03-01T12:00:00Z", count: 1 },
    })
    const typeOf = (level: "debug" | "info" | "warning" | "error") => eventFor(job, level, "X", "x", NOW).type
    expect([typeOf("debug"), typeOf("info"), typeOf("warning"), typeOf("error")]).toEqual([
      "Normal",
      "Normal",
      "Warning",
      "Warning",
    ])
  })

  test("eventFor() has a message within the limit, masked and printable", () => {
    always([fc.string({ unit: "binary", maxLength: 2_000 }), fc.nat(10 ** 12)], (text, at) => {
      const event = eventFor(viewJob(failedJob()), "info", "X", `password=hunter2 ${text}`, at + 0.5)
      expect(event.message.length).toBeLessThanOrEqual(1_000)
      expect(event.message).toStartWith("password=*** ".slice(0, event.message.length))
      expect(event.message).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u)
    })
    expect(eventFor(viewJob(failedJob()), "info", "X", "x".repeat(5_000), NOW).message).toHaveLength(1_000)
  })

  test("recordFor() tells a failure in metadata alone, and whole in its data", () => {
    const job = viewJob(annotated({ restarts: "2" }))
    const pods = [
      pod({
        name: "load-a-x",
        containers: [exited("worker", 3, { reason: "Error", message: "token=hunter2" }), running("side")],
      }),
    ]
    const logs = new Map([["uid-load-a-x/worker", { lines: ["# one", "", "two"], note: "last 3 lines" }]])
    const evidence = { pods, logs, morePods: 1 }
    const record = recordFor(
      job,
      evidence,
      { ...UNKNOWN, cause: "exit:3" },
      { do: "wait", dueAt: NOW + HOUR, because: "RESTART_DELAY 1h" },
    )
    expect(record).toMatchObject({
      immutable: true,
      metadata: {
        ...{ namespace: "batch-a", name: expect.stringMatching(/^load-a-failure-[0-9a-f]{12}$/) },
        labels: prefixed({ record: "failure", job: "load-a", cause: "exit-3" }),
        annotations: prefixed({
          ...{
            cause: "exit:3",
            "failed-at": "2026-03-01T12:00:00Z",
            uid: "U1",
            restarts: "2",
            summary: "worker: exit code 3, Error",
          },
          decided: "to be restarted at 2026-03-01T13:00:00Z: RESTART_DELAY 1h",
        }),
      },
    })
    expect(JSON.parse(record.data!["failure.json"]!)).toMatchObject({
      ...{
        job: "load-a",
        failedAt: "2026-03-01T12:00:00Z",
        cause: "exit:3",
        reason: "BackoffLimitExceeded",
        restarts: 2,
        morePods: 1,
      },
      pods: [
        {
          name: "load-a-x",
          containers: [{ name: "worker", exitCode: 3, finishedAt: "2026-03-01T11:01:00Z", message: "token=***" }, {}],
        },
      ],
      logs: { "uid-load-a-x/worker": { lines: ["# one", "", "two"], note: "last 3 lines" } },
    })
    expect(Object.keys(record)).toEqual(["apiVersion", "kind", "metadata", "immutable", "data"])
  })

  test.each([63, 64, 253])(
    "recordFor() keeps a name of %i characters, which readPast() finds, in a valid label",
    (length) => {
      const name = "j".repeat(length)
      const none = { pods: [], logs: new Map(), morePods: 0 }
      const { metadata } = recordFor(
        viewJob(failedJob({ name })),
        none,
        { ...UNKNOWN, cause: "oom" },
        { do: "give up", because: "x" },
      )
      expect(metadata?.labels).toMatchObject(prefixed({ job: labelValueFor(name) }))
      expect([readPast(metadata!).job, readPast({ labels: prefixed({ job: "old" }) }).job]).toEqual([name, "old"])
    },
  )

  test("recordFor() has one name for a failure, whoever writes it, and another for each failure", () => {
    const nameOf = (job: Job, cause: Cause = "oom") =>
      recordFor(
        viewJob(job),
        { pods: [], logs: new Map(), morePods: 0 },
        { ...UNKNOWN, cause },
        { do: "give up", because: "x" },
      ).metadata!.name!
    const name = "a".repeat(29) + ".b".repeat(17)
    const others = [
      failedJob(),
      failedJob({ ago: 1_000 }),
      failedJob({ metadata: { uid: "U2" } }),
      failedJob({ name }),
    ].map((job) => nameOf(job))
    expect([nameOf(failedJob(), "unknown"), new Set(others).size]).toEqual([others[0]!, 4])
    for (const other of others) expect(other).toMatch(/^(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?$/)
  })

  test("recordFor() holds at most 256 KiB, from which readRecord() reads the last lines of each log", () => {
    const line = fc.string({ unit: "grapheme", minLength: 1, maxLength: 900 }).map((text) => printable(text))
    const log = fc.oneof(
      fc.array(line, { maxLength: 5 }),
      fc.tuple(line, fc.nat(3_000)).map(([text, n]) => Array.from({ length: n }, () => text)),
    )
    always([fc.array(fc.array(log, { minLength: 1, maxLength: 4 }), { maxLength: 5 }), fc.boolean()], (all, noted) => {
      const pods = all.map((tails, p) =>
        pod({ name: `p${p}`, containers: tails.map((_, c) => exited(`c${c}`, 1, { message: "m".repeat(4_096) })) }),
      )
      const note = noted ? { note: "last lines" } : {}
      const logs = new Map(
        all.flatMap((tails, p) => tails.map((lines, c) => [`uid-p${p}/c${c}`, { lines, ...note }] as const)),
      )
      const evidence = { pods, logs, morePods: 0 }
      const record = recordFor(
        viewJob(failedJob()),
        evidence,
        { ...UNKNOWN, cause: "exit:1" },
        { do: "give up", because: "x" },
      )
      expect(Buffer.byteLength(Object.entries(record.data!).flat().join(""))).toBeLessThanOrEqual(256 << 10)
      const read = readRecord(record)!.evidence
      expect(read.pods.map(({ uid, createdAt, containers }) => [uid, createdAt, containers.length])).toEqual(
        pods.map(({ uid, createdAt, containers }) => [uid, createdAt, containers.length]),
      )
      for (const [key, { lines }] of logs) {
        const got = read.logs.get(key)!
        expect(got.lines.length === 0 || Bun.deepEquals(got.lines, lines.slice(-got.lines.length))).toBe(true)
        const bytes = lines.reduce((sum, text) => sum + Buffer.byteLength(JSON.stringify(text)) + 10, 0)
        if (bytes <= (100 << 10) / logs.size) expect(got).toEqual({ lines, ...note })
      }
    })
  })

  const forged: Record<string, unknown>[] = [
    {},
    { data: {} },
    { data: { "failure.json": "{" } },
    { data: { "failure.json": "null" } },
    { data: { "failure.json": '{"pods":[null]}' } },
  ]
  test.each(forged)("readRecord() takes %j for no record, and readPast() still reads what metadata there is", (map) => {
    expect(readRecord(map)).toBeUndefined()
    expect(readPast({ creationTimestamp: "2026-03-01T12:00:00Z" })).toMatchObject({
      failedAt: NOW,
      cause: "unknown",
      restarts: 0,
    })
  })

  test("allowed() reads the old Role, and finds the lack of a subresource (G04)", () => {
    const lackOf = (rules: Parameters<typeof allowed>[0]["resourceRules"], incomplete = false) =>
      Object.keys(RIGHTS).filter((right) => !allowed({ incomplete, resourceRules: rules }).has(right))
    const jobs = { apiGroups: ["batch"], resources: ["jobs"], verbs: ["get", "list", "create", "delete"] }
    const pods = { apiGroups: [""], resources: ["pods"], verbs: ["get", "list", "delete"] }
    const logs = { apiGroups: [""], resources: ["pods/log"], verbs: ["get"] }
    const old = lackOf([jobs, pods, logs])
    expect(old).toEqual(expect.arrayContaining(["watch batch/jobs", "watch /pods"]))
    expect(old.filter((right) => !/^(watch|patch)/.test(right) && /jobs|pods/.test(right))).toEqual([])
    expect(lackOf([{ ...jobs, resourceNames: ["load-a"] }])).not.toContain("get batch/jobs") // only a real 403 tells
    expect(lackOf([jobs, pods])).toEqual(expect.arrayContaining(["get /pods/log"]))
    expect(lackOf([{ verbs: ["*"], apiGroups: ["*"], resources: ["*"] }])).toEqual([])
    expect(lackOf([], true)).toEqual([])
    expect(lackOf([]).length).toBe(Object.keys(RIGHTS).length)
    expect(lackOf([{ ...jobs, apiGroups: ["extensions"] }])).toContain("get batch/jobs")
    expect(lackOf([{ verbs: ["*"] }])).toContain("get batch/jobs")
  })

  test("helpText() names every setting, its default and its meaning", () => {
    for (const { variable, default: value, help } of SETTINGS)
      expect(helpText()).toContain(`${variable.padEnd(18)} ${help} (default ${value || "none"}`)
    expect(helpText()).toContain("; else LOGURU_LEVEL)")
  })
})

describe("7 Facts", () => {
  const job = { key: "batch-a/load-a", namespace: "batch-a", name: "load-a", uid: "U1" }
  const evidence = { pods: [], logs: new Map(), morePods: 0 }
  const finished = (outcome: Extract<Fact, { kind: "RestartFinished" }>["outcome"]): Fact => ({
    kind: "RestartFinished",
    job,
    outcome,
    tookMs: 1_500,
    lateMs: 250,
  })
  const heldUp = {
    kind: "HeldUp",
    job,
    waitsFor: "the old Job to go",
    blockers: "finalizers a/b",
    forMs: MINUTE,
  } as const
  /** One fact of each kind, and what `kubectl describe` shows of it. */
  const facts: { [K in Fact["kind"]]: [Extract<Fact, { kind: K }>, event: string | undefined] } = {
    FailureSeen: [
      { kind: "FailureSeen", job, failedAt: NOW, cause: "oom", reason: "BackoffLimitExceeded", evidence },
      undefined,
    ],
    LeftAlone: [{ kind: "LeftAlone", job, because: "it is running", healthy: true, phase: "running" }, undefined],
    RestartScheduled: [
      { kind: "RestartScheduled", job, dueAt: NOW + HOUR, inMs: HOUR, because: "RESTART_DELAY 1h", cause: "oom" },
      "warning FailureSeen",
    ],
    GaveUp: [{ kind: "GaveUp", job, because: "rule any=never", cause: "oom" }, "error GivenUp"],
    RestartStarted: [{ kind: "RestartStarted", job, cause: "oom", isDryRun: false }, undefined],
    IntentWritten: [{ kind: "IntentWritten", job, intent: "load-a-restart-1", dueAt: NOW }, "info RestartRecorded"],
    IntentAdopted: [{ kind: "IntentAdopted", job, intent: "load-a-restart-1" }, undefined],
    IntentUnreadable: [{ kind: "IntentUnreadable", job }, undefined],
    RestartFinished: [
      { kind: "RestartFinished", job, outcome: { result: "restarted", uid: "U2" }, tookMs: 1_500, lateMs: 250 },
      "info Restarted",
    ],
    RestartRejected: [{ kind: "RestartRejected", job, why: "403: no", retryMs: MINUTE }, "error CannotRestart"],
    HeldUp: [{ ...heldUp, isAlarm: false }, undefined],
    EditTaken: [{ kind: "EditTaken", job }, undefined],
    EditRejected: [{ kind: "EditRejected", job, why: "422: no" }, undefined],
    DeletedByOthers: [{ kind: "DeletedByOthers", job, isRestart: false }, undefined],
    RemovedByTtl: [{ kind: "RemovedByTtl", job, because: "rule any=never" }, undefined],
    WrongAnnotation: [{ kind: "WrongAnnotation", job, problem: "annotation x cannot be y" }, "warning WrongAnnotation"],
    Queued: [{ kind: "Queued", job, queue: "q1" }, "warning Queued"],
    NoPod: [{ kind: "NoPod", job, forMs: MINUTE }, "warning NoPod"],
    CannotStart: [{ kind: "CannotStart", job, pod: "p", reason: "ErrImagePull: no" }, undefined],
    EvidenceUnavailable: [{ kind: "EvidenceUnavailable", job, why: "403" }, undefined],
    NotUnderstood: [{ kind: "NotUnderstood", job, why: "no metadata" }, undefined],
    JobMissing: [{ kind: "JobMissing", job }, undefined],
    NamespaceEmpty: [{ kind: "NamespaceEmpty", namespace: "batch-a" }, undefined],
    PermissionsReviewed: [
      { kind: "PermissionsReviewed", namespace: "batch-a", missing: ["x: y"], isEssential: false },
      undefined,
    ],
    WriteFailed: [{ kind: "WriteFailed", namespace: "batch-a", what: "a record", why: "403" }, undefined],
    Retrying: [
      { kind: "Retrying", what: "its restart is held up", job, why: "503", retryMs: 250, isAlarm: false },
      undefined,
    ],
    Recovered: [{ kind: "Recovered", job: undefined, what: "its restart is held up", afterMs: MINUTE }, undefined],
    ClockSkew: [{ kind: "ClockSkew", skewMs: HOUR }, undefined],
    ClockSet: [{ kind: "ClockSet", byMs: -HOUR }, undefined],
    Stopping: [{ kind: "Stopping", restarts: 2 }, undefined],
  }
  test.each(Object.entries(facts))(
    "logLineOf() names the Job of %s, and its kind for log collectors",
    (kind, [fact]) => {
      const { text, details } = logLineOf(fact)
      expect(text).toMatch(/^[^\n]{10,}$/)
      if (!("job" in fact) || !fact.job) return
      expect(text).toStartWith("[batch-a/load-a] ")
      expect(details).toMatchObject({ job: "batch-a/load-a", reason: kind })
    },
  )
  test.each(Object.entries(facts))(
    "eventTextOf() %s is what kubectl describe shows, or nothing",
    (_, [fact, event]) => {
      const shown = eventTextOf(fact)
      expect(shown && `${shown.level} ${shown.reason}`).toBe(event)
      expect(shown?.text ?? "").not.toContain("load-a]")
    },
  )
  test("eventTextOf() shows a restart that is held up when it has become an alarm", () =>
    expect(eventTextOf({ ...heldUp, isAlarm: true })).toMatchObject({ level: "error", reason: "HeldUp" }))
  test.each(["replaced", "cancelled", "changed", "namespace gone", "interrupted"] as const)(
    "eventTextOf() shows nothing of a restart that ended as %s",
    (result) =>
      expect(eventTextOf(finished(result === "replaced" ? { result, uid: "U2" } : { result }))).toBeUndefined(),
  )

  test("logLineOf() tells how to cancel a restart when its intent is written", () => {
    const { text } = logLineOf(facts.IntentWritten[0])
    expect(text).toContain("kubectl -n batch-a delete job load-a load-a-restart-1")
    const atOnce = logLineOf({ ...facts.IntentWritten[0], dueAt: undefined } as Fact)
    expect(atOnce.text).toContain("kubectl -n batch-a delete job load-a-restart-1")
  })
  test("logLineOf() names what holds a restart up, for how long, and what to do about it (J04)", () => {
    const lines = [false, true].map((isAlarm) => logLineOf({ ...heldUp, isAlarm }))
    expect(lines.map(({ level }) => level)).toEqual(["warning", "error"])
    for (const { text } of lines) expect(text).toMatch(/1m .*the old Job to go.*finalizers a\/b.*remove/)
  })

  const results: Record<string, [Fact, object]> = {
    "a failure": [facts.FailureSeen[0], { cause: "oom", lines: ["no pods left"] }],
    "a Job that is left alone": [facts.LeftAlone[0], { phase: "running" }],
    "a restart": [finished({ result: "restarted", uid: "U2" }), { result: "restarted", lateMs: 250, tookMs: 1_500 }],
    "a restart that somebody else completed": [finished({ result: "replaced", uid: "U2" }), { result: "replaced" }],
    "a cancelled restart": [finished({ result: "cancelled" }), { result: "cancelled" }],
    "a rejected restart": [facts.RestartRejected[0], { reason: "RestartRejected", why: "403: no", retryMs: MINUTE }],
  }
  test.each(Object.entries(results))("logLineOf() has fields for log collectors about %s", (_, [fact, fields]) => {
    expect(logLineOf(fact).details).toMatchObject(fields)
  })
})

describe("11 Controller", () => {
  test("Cache keeps the last state of each pod of a Job, of one as of many", () => {
    const cache = new Cache()
    const pod = (uid: string, phase = "Running") => ({ ...viewPod({}), jobUid: "J1", uid, phase })
    const seen = () => cache.podsOf("J1").map(({ uid, phase }) => `${uid} ${phase}`)
    cache.addPod(pod("a"), true)
    expect(seen()).toEqual(["a Running"])
    cache.addPod(pod("a", "Failed"), true)
    expect(seen()).toEqual(["a Failed"])
    for (const uid of ["b", "c"]) cache.addPod(pod(uid), true)
    cache.addPod(pod("b", "Failed"), true)
    expect(seen()).toEqual(["a Failed", "b Failed", "c Running"])
    expect([cache.pod(pod("c"))?.phase, cache.pod(pod("d")), cache.podsOf("J2")]).toEqual(["Running", undefined, []])
  })

  describe("Workqueue", () => {
    /** A queue with keys, by their ms from NOW. */
    const queueOf = (times: Record<string, number>) => {
      const queue = new Workqueue()
      for (const [key, ms] of Object.entries(times)) queue.add(key, NOW + ms)
      return queue
    }

    test("takeDue() takes all that is due, the longest overdue first, and once", () => {
      const queue = queueOf({ c: 3, a: -5, b: 0, d: 3 })
      expect([queue.takeDue(NOW), queue.takeDue(NOW), queue.nextAt()]).toEqual([["a", "b"], [], NOW + 3])
      expect([queue.takeDue(NOW + 3), queue.nextAt()]).toEqual([["c", "d"], undefined])
    })

    test("of a key the earliest time counts, until it is taken", () => {
      const queue = queueOf({ a: 9 })
      queue.add("a", NOW + 5)
      queue.add("a", NOW + 7)
      expect([queue.takeDue(NOW + 4), queue.takeDue(NOW + 5), queue.takeDue(NOW + 99)]).toEqual([[], ["a"], []])
      queue.add("a", NOW + 100)
      expect(queue.takeDue(NOW + 100)).toEqual(["a"])
    })

    test("remove() makes void what was asked for", () => {
      const queue = queueOf({ a: 1, b: 2 })
      queue.remove("a")
      expect([queue.nextAt(), queue.takeDue(NOW + 9)]).toEqual([NOW + 2, ["b"]])
      queue.remove("no such key")
    })

    test("woken fires when something is due earlier than all before, and only then", () => {
      const queue = queueOf({ a: 5 })
      queue.takeDue(NOW)
      const { woken } = queue
      queue.add("b", NOW + 9)
      expect(woken.aborted).toBe(false)
      queue.add("c", NOW + 1)
      expect(woken.aborted).toBe(true)
      queue.takeDue(NOW)
      expect(queue.woken.aborted).toBe(false)
    })

    test("it does what a plain list of the earliest times does, whatever is asked of it", () => {
      const ms = fc.integer({ min: -20, max: 20 })
      const command = fc.tuple(fc.constantFrom("add", "add", "remove", "take"), fc.constantFrom("a", "b", "c"), ms)
      always([fc.array(command, { maxLength: 40 })], (commands) => {
        const queue = new Workqueue()
        const model = new Map<string, number>()
        for (const [what, key, at] of commands) {
          if (what === "add") {
            queue.add(key, NOW + at)
            model.set(key, Math.min(at, model.get(key) ?? at))
          } else if (what === "remove") {
            queue.remove(key)
            model.delete(key)
          } else {
            const due = [...model].filter(([, time]) => time <= at).map(([one]) => one)
            expect(queue.takeDue(NOW + at).toSorted()).toEqual(due.toSorted())
            for (const one of due) model.delete(one)
          }
          expect(queue.nextAt()).toBe(model.size === 0 ? undefined : NOW + Math.min(...model.values()))
          expect(new Map([...queue.schedules].map(([one, { at }]) => [one, at - NOW]))).toEqual(model)
        }
      })
    })

    test("what a key leaves in the heap each time it is taken is bounded", () => {
      const queue = queueOf({})
      for (let i = 0; i < 10_000; i++) {
        queue.add("a", NOW + i)
        queue.takeDue(NOW + i)
        queue.add("a", NOW + HOUR)
      }
      expect(Bun.inspect(queue, { depth: 3 }).match(/key: /g)?.length).toBeLessThan(400)
      expect(queue.takeDue(NOW + HOUR)).toEqual(["a"])
    })
  })

  describe("Spacing", () => {
    test("freeAt() keeps the restarts of one group apart, and no others", () => {
      const spacing = new Spacing(MINUTE, new Workqueue())
      expect(spacing.freeAt("g", NOW)).toBe(NOW)
      spacing.take("g", NOW - SECOND)
      expect([spacing.freeAt("g", NOW), spacing.freeAt("h", NOW)]).toEqual([NOW + 59 * SECOND, NOW])
      spacing.take("g", NOW - HOUR)
      expect(spacing.freeAt("g", NOW)).toBe(NOW + 59 * SECOND)
    })

    test("freeAt() takes a restart of the future for one of now: the clock was set back", () => {
      const spacing = new Spacing(MINUTE, new Workqueue())
      spacing.take("g", NOW + HOUR)
      expect(spacing.freeAt("g", NOW)).toBe(NOW + MINUTE)
    })

    test("release() makes a group as free as it was before its last restart", () => {
      const spacing = new Spacing(HOUR, new Workqueue())
      spacing.take("g", NOW - 2 * MINUTE)
      const start = spacing.take("g", NOW)!
      expect(spacing.freeAt("g", NOW)).toBe(NOW + HOUR)
      spacing.release("g", start, NOW)
      expect(spacing.freeAt("g", NOW)).toBe(NOW + HOUR - 2 * MINUTE)
      const first = spacing.take("h", NOW)!
      spacing.release("h", first, NOW)
      expect(spacing.freeAt("h", NOW)).toBe(NOW)
    })

    test("release() changes nothing once another restart of the group has started", () => {
      const spacing = new Spacing(HOUR, new Workqueue())
      const first = spacing.take("g", NOW)!
      spacing.take("g", NOW + HOUR)
      spacing.release("g", first, NOW + HOUR)
      expect(spacing.freeAt("g", NOW + HOUR)).toBe(NOW + 2 * HOUR)
    })

    test("release() makes the longest overdue of those that wait for the group due", () => {
      const queue = new Workqueue()
      const spacing = new Spacing(HOUR, queue)
      const start = spacing.take("g", NOW)!
      for (const [key, group, since] of [
        ["a", "g", 3],
        ["b", "g", 2],
        ["c", "h", 1],
      ] as const) {
        spacing.addWaiting(group, key)
        queue.add(key, NOW + HOUR, NOW - since * MINUTE)
      }
      spacing.release("g", start, NOW)
      expect(queue.takeDue(NOW)).toEqual(["a"])
    })

    test("it forgets Jobs that were deleted while they waited, and groups that are free for long", () => {
      const spacing = new Spacing(MINUTE, new Workqueue())
      for (let i = 0; i < 10_000; i++) {
        spacing.addWaiting("g", `job-${i}`)
        spacing.take(`group-${i}`, NOW + i * SECOND)
        spacing.addWaiting(`group-${i}`, `job-${i}`)
      }
      const { waiting, lastRestarts } = spacing as unknown as Record<string, Map<string, Set<string>>>
      expect(waiting?.get("g")?.size).toBeLessThan(1_000)
      expect(Math.max(lastRestarts!.size, waiting!.size)).toBeLessThan(2_000)
      expect(spacing.freeAt("group-9999", NOW + 9_999 * SECOND)).toBe(NOW + 9_999 * SECOND + MINUTE)
    })

    test("freeAt() is now where there is no spacing", () => {
      const spacing = new Spacing(0, new Workqueue())
      spacing.take("g", NOW + HOUR)
      expect(spacing.freeAt("g", NOW)).toBe(NOW)
    })

    test("it keeps the spacing in every group for any failures, the longest overdue first, and nobody starves", () => {
      always([anyArrivals(), fc.integer({ min: 1, max: 90 })], (arrivals, spacing) => {
        const spacingMs = spacing * SECOND
        const begun = spaced(arrivals, spacingMs)
        expect(begun.map(({ key }) => key).toSorted()).toEqual(arrivals.map((_, i) => String(i)).toSorted())
        for (const group of ["g", "h"]) {
          const mine = begun.filter((one) => one.group === group)
          for (const [i, one] of mine.entries()) {
            if (i > 0) expect(one.at - mine[i - 1]!.at).toBeGreaterThanOrEqual(spacingMs)
            expect(one.at).toBeGreaterThanOrEqual(one.dueAt - NOW)
            const ahead = mine.slice(i + 1).filter(({ from, dueAt }) => from < one.at && dueAt < one.dueAt)
            expect(ahead).toEqual([])
            // Nobody waits longer than for all the others.
            expect(one.at).toBeLessThanOrEqual(Math.max(one.from, one.dueAt - NOW) + mine.length * spacingMs)
          }
        }
      })
    })

    test("a clock that is moved by an hour blocks nobody for one, and brings no two restarts closer", () => {
      const moves = fc.array(fc.tuple(fc.nat(400), fc.constantFrom(-HOUR, HOUR)), { minLength: 1, maxLength: 3 })
      always([anyArrivals(), fc.integer({ min: 1, max: 90 }), moves], (arrivals, spacing, moved) => {
        const spacingMs = spacing * SECOND
        const begun = spaced(
          arrivals,
          spacingMs,
          moved.map(([at, byMs]) => [at * SECOND, byMs]),
        )
        expect(begun).toHaveLength(arrivals.length)
        const isBackOnly = moved.every(([, byMs]) => byMs < 0)
        for (const group of ["g", "h"]) {
          const mine = begun.filter((one) => one.group === group)
          for (const [i, one] of mine.entries()) {
            if (i > 0 && isBackOnly) expect(one.at - mine[i - 1]!.at).toBeGreaterThanOrEqual(spacingMs)
            expect(one.heldMs).toBeLessThanOrEqual(mine.length * spacingMs)
          }
        }
      })
    })
  })

  describe("Cache", () => {
    const entryOf = (job: Job) => ({ view: viewJob(job), job }) as Parameters<Cache["addJob"]>[0]
    const podOf = (jobUid: string, uid = `pod-${jobUid}`) =>
      viewPod({ metadata: { name: uid, uid, ownerReferences: [owner(jobUid)] } })
    const named = (name: string, uid: string) => ({
      ...failedJob({ name }),
      metadata: { ...failedJob({ name }).metadata, uid },
    })
    const uidsOf = (all: { uid: string }[]) => all.map(({ uid }) => uid)

    test("finds the intents of a Job, and the Jobs of a namespace that have any", () => {
      const cache = new Cache()
      cache.addIntent(intentOf(), monotonic(5))
      cache.addIntent({ ...intentOf({}, { version: "8", uid: "U8" }) }, monotonic(5))
      expect(uidsOf(cache.intentsOf("batch-a/load-a"))).toEqual(["U7", "U8"])
      expect([cache.keysWithIntents("batch-a"), cache.keysWithIntents("batch")]).toEqual([["batch-a/load-a"], []])
      for (const intent of cache.intentsOf("batch-a/load-a")) cache.removeIntent(intent)
      expect([cache.intentsOf("batch-a/load-a"), cache.keysWithIntents("batch-a")]).toEqual([[], []])
    })

    test("an intent that was removed does not come back by a late watch, another of its name does", () => {
      const cache = new Cache()
      cache.addIntent(intentOf(), monotonic(5))
      cache.removeIntent(intentOf())
      cache.addIntent(intentOf(), monotonic(5))
      expect(cache.intentsOf("batch-a/load-a")).toEqual([])
      cache.addIntent({ ...intentOf(), uid: "U70" }, monotonic(5))
      cache.removeIntent(intentOf())
      expect(uidsOf(cache.intentsOf("batch-a/load-a"))).toEqual(["U70"])
    })

    test.each([
      ["a watch tells it again", 5, 60],
      ["a watch told it first, and this operator wrote it", 60, 5],
    ])("an intent is adopted at the earliest time that was told: %s", (_, first, second) => {
      const cache = new Cache()
      cache.addIntent(intentOf(), monotonic(first))
      cache.addIntent(intentOf(), monotonic(second))
      expect(cache.intentsOf("batch-a/load-a").map(({ adoptAt }) => adoptAt)).toEqual([monotonic(5)])
    })

    test("finds pods by the uid of their Job, and forgets them with it", () => {
      const cache = new Cache()
      cache.addJob(entryOf(failedJob()))
      cache.addPod(podOf("U1", "p1"), true)
      cache.addPod(podOf("U1", "p2"), true)
      cache.addPod({ ...podOf("U1", "p1"), gone: true }, true)
      cache.addPod(podOf("U2"), false)
      expect(cache.podsOf("U1").map(({ uid, gone }) => [uid, gone])).toEqual([
        ["p1", true],
        ["p2", false],
      ])
      cache.forgetJob(entryOf(failedJob()))
      expect([cache.podsOf("U1"), uidsOf(cache.podsOf("U2")), cache.jobs.size]).toEqual([[], ["pod-U2"], 0])
    })

    test("of pods that are gone it keeps the few that may become evidence, and all that are there", () => {
      const cache = new Cache()
      cache.addJob(entryOf(failedJob()))
      const at = (i: number) => ({ name: `p${i}`, uid: `p${i}`, createdAt: NOW + i })
      const failedItself = pod({ containers: [exited("worker", 3)] })
      const stopped = pod({ toldAt: 2, containers: [exited("worker", 143, { minute: 3 })] })
      const goes = (i: number, view: ReturnType<typeof viewPod>) => {
        const one = { ...view, jobUid: "U1", ...at(i) }
        cache.addPod(one, true)
        cache.addPod({ ...one, gone: true }, true)
      }
      cache.addPod({ ...podOf("U1"), ...at(0), uid: "stays" }, true)
      goes(1, failedItself)
      for (let i = 2; i < 100; i++) goes(i, stopped)
      for (let i = 100; i < 200; i++) goes(i, { ...pod({ containers: [exited("worker", 0)] }), phase: "Succeeded" })
      expect(uidsOf(cache.podsOf("U1")).toSorted()).toEqual(["p1", "p96", "p97", "p98", "p99", "stays"])
      cache.forgetJob(entryOf(failedJob()))
      expect(cache.podsOf("U1")).toEqual([])
    })

    test("what cannot be understood of one Job is told once, and does not end the loop", () => {
      const facts: string[] = []
      const emit = ({ kind }: Fact) => facts.push(kind)
      const { config } = readSettings({ NAMESPACE: "batch-a", JOB_SELECTOR: "!nobody" })
      const never = new AbortController().signal
      const world = { cluster: {}, clock: systemClock, emit, config, stop: never, kill: never }
      const { cache, reconciler } = new Operator(world as unknown as ConstructorParameters<typeof Operator>[0])
      cache.jobs.get = () => {
        throw new TypeError("no text")
      }
      for (const _ of [1, 2]) reconciler.reconcile("batch-a/load-a")
      expect(facts).toEqual(["NotUnderstood"])
    })

    test("only what an earlier process restarted takes a group, not what looks like that and is created later", () => {
      const never = new AbortController().signal
      const { config } = readSettings({ NAMESPACE: "batch-a", JOB_SELECTOR: "!nobody", RESTART_SPACING: "3600" })
      const clock = { ...systemClock, now: () => NOW }
      const world = { cluster: { skewMs: () => 0 }, clock, emit: () => {}, config, stop: never, kill: never }
      const operator = new Operator(world as unknown as ConstructorParameters<typeof Operator>[0])
      type Handler = Record<"onJobsListed" | "onJobEvent", (...event: unknown[]) => void>
      const { watcher, restarts } = operator as unknown as {
        watcher: { handler: Handler }
        restarts: { freeAt(view: ReturnType<typeof viewJob>, now: number): number }
      }
      const restarted = (group: string, agoMs: number) => {
        const job = annotated({ group, "restarted-from": "U0" })
        const creationTimestamp = new Date(NOW - agoMs).toISOString()
        return { ...job, metadata: { ...job.metadata, name: group, uid: group, creationTimestamp } }
      }
      const freeInMs = (group: string) => restarts.freeAt(viewJob(restarted(group, 0)), clock.now()) - clock.now()
      const items = [keepJob(restarted("earlier", MINUTE))]
      watcher.handler.onJobsListed("batch-a", { items, resourceVersion: "1", asOf: 0 })
      clock.now = () => NOW + 2 * MINUTE
      watcher.handler.onJobEvent("ADDED", restarted("later", -MINUTE))
      expect([freeInMs("earlier"), freeInMs("later")]).toEqual([HOUR - 3 * MINUTE + 999, 0])
      // The new Job of one that is known is what another operator, or a person by a command, has restarted.
      const old = restarted("known", 0)
      watcher.handler.onJobEvent("ADDED", { ...old, metadata: { ...old.metadata, uid: "U0", annotations: {} } })
      watcher.handler.onJobEvent("ADDED", restarted("known", -MINUTE))
      expect(freeInMs("known")).toEqual(HOUR - MINUTE + 999)
    })

    test("the cost of an event does not depend on how many pods of its Job are told to stop", () => {
      const never = new AbortController().signal
      const cluster = { skewMs: () => 0, listPods: () => new Promise(() => {}) }
      const stopPods = (count: number) => {
        const { config } = readSettings({ NAMESPACE: "batch-a", JOB_NAMES: "load-a", HISTORY_LIMIT: "0" })
        const world = { cluster, clock: systemClock, emit: () => {}, config, stop: never, kill: never }
        const operator = new Operator(world as unknown as ConstructorParameters<typeof Operator>[0])
        type Handler = Record<"onJobEvent" | "onPodEvent", (...event: unknown[]) => void>
        const { handler: watch } = (operator as unknown as { watcher: { handler: Handler } }).watcher
        const job = runningJob()
        const jobUid = job.metadata?.uid ?? ""
        watch.onJobEvent("ADDED", job)
        const podAt = (i: number, deleting: boolean) => ({
          ...podOf(jobUid, `p${i}`),
          jobName: "load-a",
          createdAt: NOW + i,
          phase: "Running",
          deleting,
        })
        for (let i = 0; i < count; i++) watch.onPodEvent("ADDED", "batch-a", podAt(i, false))
        for (let i = 0; i < count; i++) watch.onPodEvent("MODIFIED", "batch-a", podAt(i, true))
        expect(operator.cache.podsOf(jobUid).filter(({ deleting }) => deleting).length).toBe(count)
        const { candidates, collection } = operator.cache.jobs.get("batch-a/load-a") ?? {}
        expect([candidates?.length, collection?.triggers.size]).toEqual([5, 5])
      }
      expectLinear(4_000, stopPods)
    })

    test("holds the pods of at most 200 Jobs that it does not know, and drops the oldest first", () => {
      const cache = new Cache()
      for (let i = 0; i <= 200; i++) cache.addPod(podOf(`S${i}`), false)
      expect([cache.podsOf("S0"), uidsOf(cache.podsOf("S1"))]).toEqual([[], ["pod-S1"]])
    })

    test("keeps the pods of a Job that it came to know after them, however many others follow", () => {
      const cache = new Cache()
      cache.addPod(podOf("U1"), false)
      cache.addJob(entryOf(failedJob()))
      for (let i = 0; i <= 400; i++) cache.addPod(podOf(`S${i}`), false)
      expect(uidsOf(cache.podsOf("U1"))).toEqual(["pod-U1"])
    })

    test("forgetting a Job that another uid has followed leaves the newer one", () => {
      const cache = new Cache()
      cache.addJob(entryOf(named("load-a", "U2")))
      cache.forgetJob(entryOf(named("load-a", "U1")))
      expect(cache.jobs.get("batch-a/load-a")?.view.uid).toBe("U2")
    })

    test("latest() is the newest version of the entry and the tombstone", () => {
      const cache = new Cache()
      expect(cache.latest("batch-a/load-a")).toBeUndefined()
      cache.addJob(entryOf(liveJob({ resourceVersion: "9" })))
      cache.addTombstone("batch-a/load-a", { job: liveJob({ resourceVersion: "10" }), watched: true, ttlMs: undefined })
      expect(cache.latest("batch-a/load-a")?.metadata?.resourceVersion).toBe("10")
      cache.addTombstone("batch-a/load-a", { job: liveJob({ resourceVersion: "8" }), watched: true, ttlMs: undefined })
      expect(cache.latest("batch-a/load-a")?.metadata?.resourceVersion).toBe("9")
    })

    test("tombstone() keeps what a watch has told, whatever a list concludes later", () => {
      const cache = new Cache()
      cache.addTombstone("batch-a/load-a", { job: liveJob({ resourceVersion: "10" }), watched: true, ttlMs: undefined })
      cache.addTombstone("batch-a/load-a", { job: liveJob({ resourceVersion: "9" }), watched: false, ttlMs: undefined })
      expect(cache.tombstone("batch-a/load-a")).toMatchObject({ watched: true, ttlMs: undefined })
    })

    test("holds 1,000 tombstones, and drops the oldest first", () => {
      const cache = new Cache()
      for (let i = 0; i <= 1_000; i++)
        cache.addTombstone(`batch-a/j${i}`, { job: named(`j${i}`, "U1"), watched: true, ttlMs: undefined })
      expect([cache.tombstone("batch-a/j0"), cache.tombstone("batch-a/j1")?.watched]).toEqual([undefined, true])
    })

    test("holds the tombstones of all Jobs that it knows, though thousands of them are deleted at once", () => {
      const cache = new Cache()
      const jobs = Array.from({ length: 2_000 }, (_, i) => named(`j${i}`, `U${i}`))
      const bury = (i: number) =>
        cache.addTombstone(`batch-a/j${i}`, { job: jobs[i]!, watched: true, ttlMs: undefined })
      for (const job of jobs) cache.addJob(entryOf(job))
      for (const i of jobs.keys()) bury(i)
      expect(cache.tombstone("batch-a/j0")?.watched).toBe(true)
      for (const job of jobs) cache.forgetJob(entryOf(job))
      bury(1_999)
      expect([cache.tombstone("batch-a/j999"), cache.tombstone("batch-a/j1000")?.watched]).toEqual([undefined, true])
    })

    test("clear() empties the memory of one namespace, as after a restore of etcd", () => {
      const cache = new Cache()
      const elsewhere = { ...failedJob(), metadata: { ...failedJob().metadata, namespace: "other", uid: "U3" } }
      for (const job of [failedJob(), elsewhere]) cache.addJob(entryOf(job))
      for (const namespace of ["batch-a", "other"]) {
        cache.addIntent({ ...intentOf(), namespace, uid: namespace }, monotonic(0))
        cache.addTombstone(`${namespace}/load-a`, { job: failedJob(), watched: true, ttlMs: undefined })
      }
      cache.addPod(podOf("U1"), true)
      cache.removeIntent({ ...intentOf(), uid: "U70" })
      cache.clear("batch-a")
      expect([...cache.jobs.keys()]).toEqual(["other/load-a"])
      expect([cache.podsOf("U1"), cache.intentsOf("batch-a/load-a"), cache.tombstone("batch-a/load-a")]).toEqual([
        [],
        [],
        undefined,
      ])
      expect([cache.intentsOf("other/load-a").length, cache.tombstone("other/load-a")?.watched]).toEqual([1, true])
      cache.addIntent({ ...intentOf(), uid: "U70" }, monotonic(0))
      expect(uidsOf(cache.intentsOf("batch-a/load-a"))).toEqual(["U70"])
    })
  })

  describe("Permissions", () => {
    const all = { incomplete: false, resourceRules: [{ verbs: ["*"], apiGroups: ["*"], resources: ["*"] }] }
    const only = (...rights: string[]) => ({
      incomplete: false,
      resourceRules: rights.map((right) => {
        const [verb = "", group = "", ...resource] = right.split(/[ /]/)
        return { verbs: [verb], apiGroups: [group], resources: [resource.join("/")] }
      }),
    })
    const forbidden = new ApiError(403, "Forbidden", "no")
    const WATCH = "watch batch/jobs"

    test("allow nothing before a review, and what it says after", () => {
      const permissions = new Permissions()
      expect([permissions.may("a", WATCH), permissions.needsReview("a", monotonic(0))]).toEqual([false, true])
      expect(permissions.review("a", all, monotonic(0))).toEqual({ missing: [], isEssential: false })
      expect([permissions.may("a", WATCH), permissions.may("b", WATCH)]).toEqual([true, false])
    })

    test("a review tells what each lack costs, and whether nothing can be restarted", () => {
      const essential = Object.keys(RIGHTS).filter((right) => RIGHTS[right]!.startsWith("!"))
      const lacking = new Permissions().review("a", only(...essential, "list /pods", "get /pods/log"), monotonic(0))
      expect(lacking.missing).toContain(`${WATCH}: ${RIGHTS[WATCH]}`)
      expect(lacking.missing).toContain(`create events: ${RIGHTS["create /events"]}`)
      expect(lacking.isEssential).toBe(false)
      expect(new Permissions().review("a", only(...essential.slice(1)), monotonic(0)).isEssential).toBe(true)
    })

    test("six times 403 may pass, a seventh overrides the review", () => {
      const permissions = new Permissions()
      permissions.review("a", all, monotonic(0))
      for (let i = 0; i < 6; i++) permissions.noteDenied("a", WATCH, forbidden)
      expect(permissions.may("a", WATCH)).toBe(true)
      permissions.noteDenied("a", WATCH, forbidden)
      expect([permissions.may("a", WATCH), permissions.may("a", "list batch/jobs")]).toEqual([false, true])
    })

    test("a watch that works forgets the 403s before it", () => {
      const permissions = new Permissions()
      permissions.review("a", all, monotonic(0))
      for (let i = 0; i < 20; i++) {
        permissions.noteDenied("a", WATCH, forbidden)
        if (i % 5 === 0) permissions.noteWorking("a", WATCH)
      }
      expect(permissions.may("a", WATCH)).toBe(true)
    })

    test("a watch that works forgets no 403 of another watch, or of another namespace", () => {
      const permissions = new Permissions()
      permissions.review("a", all, monotonic(0))
      for (let i = 0; i < 7; i++) {
        permissions.noteDenied("a", WATCH, forbidden)
        permissions.noteWorking("a", "watch /pods")
        permissions.noteWorking("b", WATCH)
      }
      expect([permissions.may("a", WATCH), permissions.may("a", "watch /pods")]).toEqual([false, true])
    })

    test("other errors deny nothing", () => {
      const permissions = new Permissions()
      permissions.review("a", all, monotonic(0))
      for (const error of [new ApiError(401, "", ""), new ApiError(503, "", ""), new Error("no answer")])
        for (let i = 0; i < 9; i++) permissions.noteDenied("a", WATCH, error)
      expect(permissions.may("a", WATCH)).toBe(true)
    })

    test("a Role that lacks a right is reviewed again after ten minutes, a complete one is not", () => {
      const permissions = new Permissions()
      permissions.review("a", only("list batch/jobs"), monotonic(1_000))
      permissions.review("b", all, monotonic(1_000))
      permissions.review("c", only(...Object.keys(RIGHTS).slice(0, -1)), monotonic(1_000))
      const needs = (at: number) => ["a", "b", "c"].map((one) => permissions.needsReview(one, monotonic(at)))
      expect([needs(1_000 + 10 * MINUTE - 1), needs(1_000 + 10 * MINUTE)]).toEqual([
        [false, false, false],
        [true, false, true],
      ])
    })

    test("a 403 for what is polled calls for a new review", () => {
      const permissions = new Permissions()
      permissions.review("a", only("list batch/jobs"), monotonic(1_000))
      permissions.noteDenied("a", WATCH, forbidden)
      expect(permissions.needsReview("a", monotonic(1_001))).toBe(true)
    })
  })

  describe("Liveness", () => {
    const livenessAt = () => {
      const clock = { at: 1_000 }
      return { clock, liveness: new Liveness({ monotonic: () => monotonic(clock.at) }, () => 150 * SECOND) }
    }

    test("runs before its first tick, and until it has not ticked for two minutes", () => {
      const { clock, liveness } = livenessAt()
      clock.at += HOUR
      expect(liveness.isRunning()).toBe(true)
      liveness.tick()
      clock.at += 2 * MINUTE - 1
      expect(liveness.isRunning()).toBe(true)
      clock.at += 1
      expect(liveness.isRunning()).toBe(false)
      liveness.tick()
      expect(liveness.isRunning()).toBe(true)
    })

    test("a namespace is stale before its first event, and after too long without one", () => {
      const { clock, liveness } = livenessAt()
      expect(liveness.staleForMs("a")).toBe(Number.POSITIVE_INFINITY)
      liveness.noteEvent("a")
      clock.at += 150 * SECOND
      expect([liveness.staleForMs("a"), liveness.staleForMs("b")]).toEqual([undefined, Number.POSITIVE_INFINITY])
      clock.at += 1
      expect(liveness.staleForMs("a")).toBe(150 * SECOND + 1)
    })

    test("a namespace whose watch is broken is stale after half a minute, until the next event", () => {
      const { clock, liveness } = livenessAt()
      liveness.noteEvent("a")
      liveness.noteBroken("a")
      clock.at += 30 * SECOND
      expect(liveness.staleForMs("a")).toBeUndefined()
      clock.at += 1
      expect(liveness.staleForMs("a")).toBe(30 * SECOND + 1)
      liveness.noteEvent("a")
      expect(liveness.staleForMs("a")).toBeUndefined()
    })

    test("counts watches", () => {
      const { liveness } = livenessAt()
      for (const resource of ["jobs", "jobs", "pods"]) liveness.noteWatch("a", resource)
      expect(liveness.watches).toEqual(new Map(Object.entries({ "a/jobs": 2, "a/pods": 1 })))
    })
  })

  const kept: Record<string, [Job, { job: boolean; intent: boolean }]> = {
    "that runs": [runningJob(), { job: false, intent: false }],
    "that succeeded": [jobWith([isTrue("Complete")]), { job: false, intent: false }],
    "that is suspended": [
      { ...runningJob(), spec: { ...spec(), suspend: true } },
      { job: false, intent: false },
    ],
    "that is failing": [jobWith([isTrue("FailureTarget")]), { job: true, intent: false }],
    "that has failed": [failedJob(), { job: true, intent: false }],
    "that is being deleted": [liveJob(deleted), { job: true, intent: false }],
    "that is an intent": [
      stored(intentFor(draftOf({ live: liveJob({}), additions: NONE, dueAt: undefined })), "U7"),
      { job: false, intent: true },
    ],
    "that is an intent of version 1.0.0": [intentOfV1(), { job: false, intent: true }],
    "that is an intent of version 1.0.0 without its label": [
      { ...intentOfV1(), metadata: { ...intentOfV1().metadata, labels: {} } },
      { job: false, intent: true },
    ],
  }
  test.each(Object.entries(kept))("keepJob() of a Job %s", (_, [job, expected]) => {
    const {
      view,
      job: whole,
      intent,
      finalizers,
    } = keepJob({ ...job, metadata: { ...job.metadata, finalizers: ["a/b"] } })
    expect({ job: whole !== undefined, intent: intent !== undefined }).toEqual(expected)
    expect([view.name, finalizers]).toEqual([job.metadata?.name ?? "", ["a/b"]])
  })

  const states: JobState[] = [
    { is: "idle" },
    { is: "collecting evidence" },
    { is: "scheduled", dueAt: NOW },
    { is: "restarting", dueAt: NOW },
    { is: "settled" },
  ]
  const legal: Record<JobState["is"], JobState["is"][]> = {
    idle: ["idle", "collecting evidence", "scheduled", "restarting", "settled"],
    "collecting evidence": ["idle", "collecting evidence", "scheduled", "restarting", "settled"],
    scheduled: ["idle", "collecting evidence", "scheduled", "restarting", "settled"],
    restarting: ["idle", "scheduled", "settled"],
    settled: ["settled"],
  }
  test.each(states.flatMap((from) => states.map((to) => [from.is, to.is, from, to] as const)))(
    "moveTo() from %s to %s is legal, or throws and changes nothing",
    (_, __, from, to) => {
      const entry = { view: viewJob(failedJob()), state: from }
      const move = () => moveTo(entry, to)
      if (legal[from.is].includes(to.is)) {
        expect(move).not.toThrow()
        expect(entry.state).toBe(to)
      } else {
        expect(move).toThrow(`[batch-a/load-a] cannot go from ${from.is} to ${to.is}`)
        expect(entry.state).toBe(from)
      }
    },
  )
})

// ────────────────────────────────────────────── Fixtures ──────────────────────────────────────────────

type Env = Record<string, string | undefined>
type Container = NonNullable<NonNullable<Pod["status"]>["containerStatuses"]>[number]
type PodParts = {
  [K in "name" | "phase" | "reason" | "message" | "index"]?: string
} & {
  /** The minutes at which it was created, and told to stop. */
  createdAt?: number
  deleting?: boolean
  toldAt?: number
  graceSeconds?: number
  restartPolicy?: string
  init?: Container[]
  sidecars?: Container[]
  containers?: Container[]
  conditions?: { type: string; status: string }[]
}
type Pods = PodParts[]
type Failure = { ago?: number; name?: string; reason?: string; metadata?: object; spec?: object }

/** The settings of an operator that looks after batch-a/load-a. */
function settings(env: Env = {}): Config {
  return readSettings({ NAMESPACE: "batch-a", JOB_NAMES: "load-a", ...env }).config
}

function anyJob(): Config {
  return settings({ JOB_NAMES: "", JOB_SELECTOR: "!none" })
}

function mistakesOf(env: Env): string[] {
  const error = attempt(
    () => readSettings({ JOB_NAMES: "load-a", ...env }),
    (thrown) => thrown,
  )
  if (error instanceof SettingsError) return error.mistakes
  throw new Error(`no mistake was found in ${JSON.stringify(env)}`)
}

/** Each text of a table of `expected: texts`, with `|` between the texts. */
function rowsOf(table: Record<string, string>): [expected: string, text: string][] {
  return Object.entries(table).flatMap(([expected, texts]) =>
    texts.split(/\n {4,}\||\|/).map((text): [string, string] => [expected, text]),
  )
}

/**
 * By CPU time, which a busy machine does not stretch: four times the length takes four times as long, not sixteen
 * times.
 */
function expectLinear(length: number, work: (length: number) => unknown): void {
  const cost = (part: number) => {
    const before = process.cpuUsage()
    work(Math.round(part))
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1_000
  }
  // The compiler and the collector work beside it, now and then: the better of two runs counts.
  const isLinear = () => cost(length) < cost(length / 4) * 8 + 200
  expect(isLinear() || isLinear()).toBe(true)
}

function attempt<T>(work: () => T, or: (error: unknown) => unknown = () => undefined): T | undefined {
  try {
    return work()
  } catch (error) {
    return or(error) as undefined
  }
}

function wrongEverywhere(): Env {
  return Object.fromEntries(SETTINGS.map(({ variable }) => [variable, "?!\n\u202e"]))
}

function isTrue(type: string, reason = "") {
  return {
    type,
    status: "True",
    reason,
    message: reason && `because ${reason}`,
    lastTransitionTime: "2026-03-01T12:00:00Z",
  }
}

function spec(): NonNullable<Job["spec"]> {
  return {
    template: { metadata: {}, spec: { containers: [{ name: "worker", image: "busybox" }], restartPolicy: "Never" } },
  }
}

function runningJob(name = "load-a"): Job {
  const metadata = {
    namespace: "batch-a",
    name,
    uid: "U1",
    resourceVersion: "7",
    creationTimestamp: "2026-03-01T00:00:00Z",
  }
  return { apiVersion: "batch/v1", kind: "Job", metadata, spec: spec(), status: { active: 1 } }
}

function jobWith(conditions: unknown[] | null | undefined, status = {}): Job {
  return { ...runningJob(), status: { ...status, conditions } as never }
}

/** A Job that failed at NOW, or some time ago. */
function failedJob({
  ago = 0,
  name = "load-a",
  reason = "BackoffLimitExceeded",
  metadata = {},
  spec: fields = {},
}: Failure = {}): Job {
  const job = runningJob(name)
  return {
    ...job,
    metadata: { ...job.metadata, ...metadata },
    spec: { ...spec(), ...fields },
    status: { failed: 1, conditions: [{ ...isTrue("Failed", reason), lastTransitionTime: instantText(NOW - ago) }] },
  }
}

function cronJob() {
  return {
    apiVersion: "batch/v1",
    kind: "CronJob",
    name: "tick",
    uid: "U9",
    controller: true,
    blockOwnerDeletion: true,
  }
}

function owner(uid: string) {
  return { apiVersion: "batch/v1", kind: "Job", name: "load-a", uid, controller: true }
}

/** The Job that intentOf() is for, as the server shows it. */
function liveJob(metadata: object, fields: object = {}): Job {
  const job = stored(failedJob({ spec: fields }), "U1")
  return { ...job, metadata: { ...job.metadata, ...metadata } }
}

/** That Job while it is being deleted, at version 9. */
function going(metadata: object = {}): Job {
  return liveJob({ ...deleted, resourceVersion: "9", ...metadata })
}

/** The Job that has its name after it, at version 12. */
function back(metadata: object): Job {
  return liveJob({ uid: "U2", resourceVersion: "12", ...metadata })
}

type IntentParts = {
  metadata?: object
  version?: string
  uid?: string
  dueAt?: number
  memory?: Record<string, string>
}

function intentOf(
  fields: object = {},
  { metadata = {}, version = "7", uid = "U7", dueAt, memory = {} }: IntentParts = {},
): Intent {
  const live = liveJob({ ...metadata, resourceVersion: version }, fields)
  const additions = { annotations: prefixed({ restarts: "1", "restarted-from": "U1" }), memory }
  return readIntent(stored(intentFor(draftOf({ live, additions, dueAt })), uid)) as Intent
}

/** An intent that waits so long. */
function laterIntent(waitMs = HOUR, uid = "U7"): Intent {
  return intentOf({}, { dueAt: NOW + waitMs, uid })
}

/** The same, by somebody who knew the cause. */
function informedIntent(): Intent {
  const intent = laterIntent()
  const annotations = { ...intent.additions.annotations, ...prefixed({ "last-cause": "exit:1" }) }
  return { ...intent, additions: { ...intent.additions, annotations } }
}

/** What this process has decided on the Job. */
function desired(what: Decision["do"], dueAt = NOW): Desired {
  const because = "it is said so"
  const additions = { annotations: prefixed({ restarts: "1", "restarted-from": "U1" }), memory: {} }
  switch (what) {
    case "leave":
      return { decision: { do: what, because, healthy: true }, additions }
    case "give up":
      return { decision: { do: what, because }, additions }
    default:
      return { decision: { do: what, dueAt, because }, additions }
  }
}

/** A failed Job that is due, and for which nothing was done yet. */
function observation(): Observation {
  return {
    intents: [],
    intentWasRemoved: false,
    ended: undefined,
    live: liveJob({}),
    latest: liveJob({}),
    deletedByPerson: false,
    hadTtl: true,
    desired: desired("restart"),
    blockers: [],
    unblockedForMs: 0,
    rejectedEdit: undefined,
    wasRejected: false,
    atOnce: false,
    heldUntil: 0,
    mayBeDeleted: false,
  }
}

/** A Job with a TTL of so many seconds. */
function ttl(seconds: number): { live: Job } {
  return { live: liveJob({}, { ttlSecondsAfterFinished: seconds }) }
}

/** A step in words, with uids for intents. */
function stepText(step: Step): string {
  switch (step.do) {
    case "write intent": {
      const { dueAt } = step.plan
      const due = dueAt === undefined ? "" : `, due in ${durationText(dueAt - NOW)}`
      return `write intent${due}${step.prove ? ", after a proof" : ""}`
    }
    case "prove and delete":
      return `prove and delete${step.ttl ? ", with a TTL" : ""}`
    case "wait": {
      const what = step.blockers.map(({ pod, finalizers, ...more }) =>
        pod === undefined ? finalizers.join() : blockersText([{ pod, finalizers, ...more }]),
      )
      return [`wait for ${step.for}`, ...what].join(": ")
    }
    case "clean up": {
      const uids = step.intents.map(({ uid }) => uid).join(", ")
      return `clean up ${uids}: ${step.outcome?.result ?? "go on"}${step.withdraw ? ", withdraw" : ""}`
    }
    case "done": {
      const { outcome } = step
      if (outcome.result === "waiting") return `done: waiting for ${durationText(outcome.dueAt - NOW)}`
      return `done: ${outcome.result}${outcome.result === "rejected" ? `, ${outcome.error.message}` : ""}`
    }
    default:
      return step.do
  }
}

/** An intent as version 1.0.0 wrote it, and the server stored it. */
function intentOfV1(): Job {
  const hidden = {
    name: "load-a",
    uid: "U1",
    resourceVersion: "7",
    notBefore: "2026-03-01T13:00:00Z",
    metadata: {
      labels: { app: "load", "kueue.x-k8s.io/queue-name": "q1" },
      ownerReferences: [{ apiVersion: "v1", kind: "ConfigMap", name: "c", uid: "U5" }],
      finalizers: ["example.test/mine"],
    },
    spec: { suspend: false },
    templateLabels: { app: "load" },
    memory: { worker: "2Gi" },
  }
  const name = "load-a-restart-f928c3f35e6e"
  const annotations = {
    note: "keep",
    ...prefixed({
      "oom-memory-max": "2Gi",
      restarts: "1",
      "restarts-of-cause": "1",
      "restarted-from": "U1",
      "last-cause": "oom",
      "last-failure": "2026-03-01T12:00:00Z",
      intent: JSON.stringify(hidden),
    }),
  }
  const generated = { "controller-uid": "U7", "job-name": name }
  const labels = {
    ...{ app: "load", ...generated },
    ...Object.fromEntries(Object.entries(generated).map(([key, value]) => [`batch.kubernetes.io/${key}`, value])),
  }
  const container = { name: "worker", image: "busybox", resources: { limits: { memory: "1Gi" } } }
  return {
    apiVersion: "batch/v1",
    kind: "Job",
    metadata: {
      namespace: "batch-a",
      name,
      uid: "U7",
      resourceVersion: "9",
      generation: 1,
      creationTimestamp: "2026-03-01T12:00:05Z",
      labels: { app: "load", [INTENT]: "load-a" },
      annotations,
    },
    spec: {
      backoffLimit: 2,
      suspend: true,
      selector: { matchLabels: { "batch.kubernetes.io/controller-uid": "U7" } },
      template: {
        metadata: { creationTimestamp: null, labels },
        spec: { restartPolicy: "Never", containers: [container] },
      },
    },
  } as unknown as Job
}

function failedBy(cause: Cause, lines: string[] = [], killed: string[] = []): WhatFailed {
  return { cause, lines, killed }
}

/** Our annotations by their short names. */
function prefixed(annotations: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(annotations).map(([name, value]) => [PREFIX + name, value]))
}

/** A failed Job with annotations of ours. */
function annotated(annotations: Record<string, string>): Job {
  return failedJob({ metadata: { annotations: prefixed(annotations) } })
}

/** A failed Job whose containers have these resources. */
function hungryJob(
  resources: Record<string, object>,
  most: string | undefined,
  init: Record<string, object> = {},
): Job {
  const containers = (all: Record<string, object>) =>
    Object.entries(all).map(([name, one]) => ({ name, image: "busybox", resources: one }))
  const pod = { ...spec().template.spec, initContainers: containers(init), containers: containers(resources) }
  return failedJob({
    metadata: { annotations: prefixed(most === undefined ? {} : { "oom-memory-max": most }) },
    spec: { template: { metadata: {}, spec: pod } },
  })
}

function resourcesOf({ spec }: Job): Record<string, unknown> {
  return Object.fromEntries(spec?.template.spec?.containers.map(({ name, resources }) => [name, resources]) ?? [])
}

/** The Job that we create after a failed one, as the server stores it, failed as well. */
function nextLife(live: Job, failure: WhatFailed, config: Config, defaulted = true): Job {
  const whatFailed = { ...failure, changed: isChanged(live) }
  const annotations = bookkeepingFor(viewJob(live), whatFailed, config)
  const draft = draftOf({ live, additions: { annotations, memory: moreMemory(live, whatFailed) }, dueAt: undefined })
  const { replacement } = readIntent(stored(intentFor(draft), "U7", defaulted)) as Intent
  const next = stored(replacement, `${live.metadata?.uid}+`, defaulted)
  // The server's own form of a quantity (k8s.io/apimachinery/pkg/api/resource).
  const text = JSON.stringify(next).replaceAll(/"(\d+)Mi"/g, (written, mi) =>
    mi % 1024 === 0 ? `"${mi / 1024}Gi"` : written,
  )
  return { ...JSON.parse(text), status: failedJob().status }
}

/** What is decided on a Job and those that come after it, when each fails in turn. */
function livesOf(job: Job, failures: WhatFailed[], config: Config): ReturnType<typeof decide>[] {
  let live = job
  return failures.map((failure) => {
    const decision = decide(viewJob(live), { ...failure, changed: isChanged(live) }, config, NOW)
    live = nextLife(live, failure, config)
    return decision
  })
}

/** How long a decision waits, in seconds, from a failure at NOW. */
function waitOf(decision: ReturnType<typeof decide>): number {
  return "dueAt" in decision ? (decision.dueAt - NOW) / SECOND : Number.NaN
}

function because(decision: ReturnType<typeof decide> | undefined): string {
  return decision?.because ?? "nothing"
}

function meaningOf(rules: ReturnType<typeof parseRules>): string {
  const all = rules.map(({ cause, wait }) => {
    const what =
      cause.kind === "exit"
        ? `exit ${cause.least}-${cause.most}`
        : cause.kind === "log"
          ? String(cause.pattern)
          : cause.kind
    if (wait === "never") return `${what} never`
    if (wait.isAsked) return `${what} asked..${wait.toMs / SECOND}`
    const [from, to] = [wait.fromMs / SECOND, wait.toMs / SECOND]
    return `${what} ${from === to ? from : `${from}..${to}`}`
  })
  return all.join("; ")
}

type Edit = { annotations?: object; labels?: object; spec?: object; [field: string]: unknown }

/** A Job after its owner has applied something. */
function edited(job: Job, { annotations, labels, spec, ...more }: Edit): Job {
  const { metadata } = job
  return {
    ...job,
    metadata: {
      ...metadata,
      ...more,
      annotations: { ...metadata?.annotations, ...annotations },
      labels: { ...metadata?.labels, ...labels },
    },
    spec: { ...job.spec, ...spec },
  } as Job
}

/** The same with all fields in the opposite order. */
function reversed<T>(value: T): T {
  if (!value || typeof value !== "object" || Array.isArray(value)) return value
  return Object.fromEntries(
    Object.entries(value)
      .toReversed()
      .map(([key, part]) => [key, reversed(part)]),
  ) as T
}

type Arrival = { from: number; wait: number; group: string }

/** Failures at any time, each due some time before or after. */
function anyArrivals(): fc.Arbitrary<Arrival[]> {
  const ms = (most: number) => fc.oneof(fc.constant(0), fc.nat(most)).map((seconds) => seconds * SECOND)
  const arrival = fc.record({
    from: ms(300),
    wait: fc.oneof(fc.constant(-30 * SECOND), ms(120)),
    group: fc.constantFrom("g", "g", "h"),
  })
  return fc.array(arrival, { minLength: 1, maxLength: 12 })
}

type Begun = Arrival & { key: string; at: number; dueAt: number; heldMs: number }

/**
 * The restarts that a Workqueue and Spacing begin, as the operator asks it: at each arrival, when the next is due, and
 * every 30 s. `at` is time as it passes, on no clock; `heldMs`, how long one was held back once it was due by the
 * clock, counted from the last move of it.
 */
function spaced(arrivals: Arrival[], spacingMs: number, moves: [atMs: number, byMs: number][] = []): Begun[] {
  const queue = new Workqueue()
  const spacing = new Spacing(spacingMs, queue)
  const waiting = new Map<string, Arrival & { dueAt: number }>()
  const overdueSince = new Map<string, number>()
  const begun: Begun[] = []
  const events = [...arrivals.map(({ from }) => from), ...moves.map(([at]) => at)].sort((a, b) => a - b)
  let before = -1
  for (let at = 0; waiting.size > 0 || before < (events.at(-1) ?? 0); ) {
    const isNew = (from: number) => from > before && from <= at
    if (moves.some(([from]) => isNew(from))) overdueSince.clear()
    const now = NOW + at + moves.filter(([from]) => from <= at).reduce((sum, [, byMs]) => sum + byMs, 0)
    for (const [i, one] of arrivals.entries()) {
      if (!isNew(one.from)) continue
      waiting.set(String(i), { ...one, dueAt: now + one.wait })
      queue.add(String(i), now)
    }
    for (const [key, { dueAt }] of waiting) if (dueAt <= now && !overdueSince.has(key)) overdueSince.set(key, at)
    for (const key of queue.takeDue(now)) {
      const one = waiting.get(key)!
      const startsAt = Math.max(one.dueAt, one.dueAt <= now ? spacing.freeAt(one.group, now) : 0)
      if (startsAt > now) {
        queue.add(key, startsAt, one.dueAt)
        continue
      }
      spacing.take(one.group, now)
      begun.push({ ...one, key, at, heldMs: at - (overdueSince.get(key) ?? Number.NEGATIVE_INFINITY) })
      waiting.delete(key)
    }
    before = at
    const nextMs = (queue.nextAt() ?? Number.POSITIVE_INFINITY) - now
    at = Math.min(at + Math.min(30 * SECOND, nextMs), ...events.filter((event) => event > at))
  }
  return begun
}

function exited(
  name: string,
  exitCode: number,
  { minute = 1, restarts = 0, ...more }: { minute?: number; restarts?: number; [field: string]: unknown } = {},
): Container {
  const [startedAt, finishedAt] = [minute - 1, minute].map((m) =>
    instantText(Date.parse("2026-03-01T11:00:00Z") + m * 60_000),
  )
  const state = { terminated: { exitCode, startedAt, finishedAt, ...more } }
  return { name, restartCount: restarts, state, lastState: {} } as unknown as Container
}

function oomKilled(name: string, exitCode = 137, minute = 1): Container {
  return exited(name, exitCode, { reason: "OOMKilled", minute })
}

function statusUnknown(at: string | null): Container {
  return exited("worker", 137, { reason: "ContainerStatusUnknown", startedAt: at, finishedAt: at })
}

function waiting(name: string, reason: string, message?: string): Container {
  return { name, restartCount: 0, state: { waiting: { reason, message } } } as unknown as Container
}

function running(name: string): Container {
  return { name, restartCount: 0, state: { running: {} } } as unknown as Container
}

/** A pod; `createdAt` and `toldAt` are the minutes at which it was created, and told to stop. */
function pod({ name = "p", phase = "Failed", deleting, restartPolicy, index, ...parts }: PodParts) {
  const { createdAt, toldAt, graceSeconds = 1_800, init, sidecars = [], containers, ...status } = parts
  const annotations = index === undefined ? {} : { "batch.kubernetes.io/job-completion-index": index }
  const killAt = Date.parse("2026-03-01T11:00:00Z") + (toldAt ?? 0) * MINUTE + graceSeconds * SECOND
  const grace = toldAt === undefined ? {} : { deletionGracePeriodSeconds: graceSeconds }
  const at = deleting || toldAt !== undefined ? { deletionTimestamp: instantText(killAt), ...grace } : {}
  const createdMs = Date.parse("2026-03-01T11:00:00Z") + (createdAt ?? 0) * MINUTE
  const created = createdAt === undefined ? {} : { creationTimestamp: instantText(createdMs) }
  const metadata = { name, uid: `uid-${name}`, ...created, annotations, ownerReferences: [owner("U1")], ...at }
  const always = sidecars.map((sidecar) => ({ name: sidecar.name, restartPolicy: "Always" }))
  const initContainerStatuses = sidecars.length > 0 ? [...sidecars, ...(init ?? [])] : init
  return viewPod({
    metadata,
    spec: { restartPolicy, initContainers: always } as never,
    status: JSON.parse(JSON.stringify({ phase, ...status, initContainerStatuses, containerStatuses: containers })),
  })
}

function serverMetadata() {
  return {
    uid: "U1",
    resourceVersion: "7",
    generation: 1,
    creationTimestamp: "2026-03-01T00:00:00Z",
    managedFields: [{ manager: "x" }],
  }
}

/**
 * A Job as the API server stores what was posted: pkg/apis/batch/v1/defaults.go, then
 * pkg/registry/batch/job/strategy.go.
 */
function stored(posted: Job, uid: string, defaulted = true): Job {
  const { metadata: m = {}, spec: s, ...rest } = structuredClone(posted) as Job & { spec: NonNullable<Job["spec"]> }
  const own = s.template.metadata?.labels
  const plain = { "controller-uid": uid, "job-name": m.name ?? "" }
  const prefixed = Object.entries(plain).map(([key, value]) => [`batch.kubernetes.io/${key}`, value])
  const labels = s.manualSelector ? own : { ...own, ...plain, ...Object.fromEntries(prefixed) }
  // A Job without labels gets its template's; the generated ones are then added to the very same map.
  const metadata = {
    namespace: "batch-a",
    ...m,
    ...serverMetadata(),
    ...(m.resourceVersion && { resourceVersion: m.resourceVersion }),
    uid,
    ...(own && Object.keys(m.labels ?? {}).length === 0 ? { labels } : {}),
  }
  const template = { ...s.template, metadata: { creationTimestamp: null, ...s.template.metadata, labels } }
  const selector = s.manualSelector ? s.selector : { matchLabels: { "batch.kubernetes.io/controller-uid": uid } }
  const spec = { ...(defaulted ? { suspend: false } : {}), ...s, selector, template }
  return withoutEmptyMaps({ ...rest, metadata, spec } as unknown as Job)
}

/** As JSON, where the server leaves out maps that are empty. */
function withoutEmptyMaps(job: Job): Job {
  const maps = ["labels", "annotations"]
  return JSON.parse(JSON.stringify(job), (key, value) =>
    maps.includes(key) && Object.keys(value).length === 0 ? undefined : value,
  )
}

function anyLabels(minKeys = 0): fc.Arbitrary<Record<string, string>> {
  const keys = fc.constantFrom(
    "app",
    "team",
    "app.kubernetes.io/instance",
    "kueue.x-k8s.io/queue-name",
    "kueue.x-k8s.io/priority-class",
  )
  return fc.dictionary(keys, fc.constantFrom("", "a", "b"), { minKeys, maxKeys: 3, noNullPrototype: true })
}

/** Any Job that a user may have applied, with fields that nobody knows yet. */
function anyUsersJob(): fc.Arbitrary<Job> {
  const [json, flag] = [fc.jsonValue(), fc.boolean()]
  const some = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
    fc.record(model, { requiredKeys: [], noNullPrototype: true })
  const keys = [
    "note",
    "kubectl.kubernetes.io/last-applied-configuration",
    "argocd.argoproj.io/sync-wave",
    `${PREFIX}restarts`,
  ]
  const annotations = fc.dictionary(fc.constantFrom(...keys), fc.string(), { noNullPrototype: true })
  const ownerReferences = fc.constant([{ apiVersion: "v1", kind: "ConfigMap", name: "c", uid: "U5" }])
  const own = { ownerReferences, finalizers: fc.constant(["example.test/mine"]), generateName: fc.constant("load-") }
  const fields = { suspend: flag, parallelism: fc.nat(9), completionMode: fc.constant("Indexed"), newerField: json }
  const parts = fc.tuple(
    some({ ...own, labels: anyLabels(), annotations, newerField: json }),
    some({ labels: anyLabels(1), annotations, newerField: json }),
    some(fields),
    some({ newerField: json }),
    fc.record({ manual: flag, same: flag }),
  )
  return parts.map(([metadata, templateMetadata, fields, podFields, { manual, same }]) => {
    const labels = manual ? { ...templateMetadata.labels, app: "mine" } : templateMetadata.labels
    const selector = manual ? { manualSelector: true, selector: { matchLabels: { app: "mine" } } } : {}
    const template = {
      metadata: { ...templateMetadata, ...(labels ? { labels } : {}) },
      spec: { ...spec().template.spec, ...podFields },
    }
    const all = { name: "load-a", namespace: "batch-a", ...metadata, ...(same && labels ? { labels } : {}) }
    return {
      apiVersion: "batch/v1",
      kind: "Job",
      metadata: all,
      spec: { ...fields, ...selector, template },
    } as unknown as Job
  })
}

/** A claim that holds for all values. */
function always<T extends [unknown, ...unknown[]]>(
  values: { [K in keyof T]: fc.Arbitrary<T[K]> },
  claim: (...values: T) => void,
): void {
  fc.assert(fc.property(fc.tuple<T>(...values), (all) => claim(...all)))
}

/** Any state that a Job can be in, as the conditions, owners and fields that make it. */
function anyFailure(): fc.Arbitrary<Job> {
  const type = fc.constantFrom("Failed", "FailureTarget", "Complete", "SuccessCriteriaMet", "Suspended")
  const one = fc.record({ type, status: fc.constantFrom("True", "True", "False", "Unknown") })
  const conditions = fc.uniqueArray(one, { selector: (condition) => condition.type })
  const flag = fc.boolean()
  return fc.tuple(conditions, flag, flag, flag).map(([all, suspend, deleting, owned]) => {
    const job = jobWith(all.map(({ type, status }) => ({ ...isTrue(type), status })))
    const deletion = deleting ? { deletionTimestamp: instantText(NOW) } : {}
    const metadata = { ...job.metadata, ...deletion, ...(owned ? { ownerReferences: [cronJob()] } : {}) }
    return { ...job, metadata, spec: { ...spec(), suspend } } as Job
  })
}
