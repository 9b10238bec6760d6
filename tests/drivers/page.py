"""The control plane's page, as somebody uses it in Chromium: signs in, looks at a tenant, suspends, resumes and moves it."""

import json
import os
import sys
import tempfile

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

INPUT = json.loads(sys.argv[1])
WAIT_S = 60

# Requests of the first page.
OVERVIEW = 4


def browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                 "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
                 "--window-size=1200,900", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


class Page:
    def __init__(self, driver):
        self.driver = driver

    def until(self, found):
        # What is shown is replaced as a whole, every few seconds.
        ignored = (NoSuchElementException, StaleElementReferenceException)
        return WebDriverWait(self.driver, WAIT_S, 0.05, ignored_exceptions=ignored).until(lambda _: found())

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def sign_in(self, token):
        self.until(lambda: self.one("input[name=token]").is_displayed())
        self.one("input[name=token]").send_keys(token)
        self.one("form button").click()

    def press(self, title, agree=False):
        def pressed():
            button = next((b for b in self.all("#page button") if b.text == title and b.is_enabled()), None)
            if button is None:
                return False
            button.click()
            return True

        self.until(pressed)
        if agree:
            WebDriverWait(self.driver, WAIT_S).until(lambda d: d.switch_to.alert).accept()

    def go(self, title):
        self.until(lambda: [a.click() for a in self.all("nav a") if a.text == title])

    def field(self, name):
        """What the table of fields says, or nothing."""
        for row in self.all("#page tbody tr"):
            cells = [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
            if len(cells) == 2 and cells[0] == name:
                return cells[1]
        return None

    def becomes(self, name, value):
        self.until(lambda: self.field(name) == value)
        return value

    def shot(self, name):
        if INPUT.get("screenshots"):
            self.driver.save_screenshot(os.path.join(INPUT["screenshots"], f"{name}.png"))

    def complaints(self):
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]


def use(driver):
    page, seen = Page(driver), {}
    driver.get(INPUT["url"])
    page.sign_in("not-a-token-of-anybody")
    seen["refused"] = page.until(lambda: page.one("form [role=alert]").text)
    # What was refused is told in the console too, by the browser.
    refusals = []
    page.until(lambda: refusals.extend(page.complaints()) or len(refusals) >= OVERVIEW)
    assert all("401" in message for message in refusals), refusals
    page.sign_in(INPUT["token"])
    page.until(lambda: page.all(".card"))
    page.shot("overview")
    seen["pages"] = [a.text for a in page.all("nav a")]
    for title in seen["pages"]:
        page.go(title)
        page.until(lambda title=title: page.one("nav a[aria-current]").text == title)

    page.go("Tenants")
    page.until(lambda: len(page.all("#page tbody tr")) == 2)
    page.one("input[type=search]").send_keys("<img\n")
    page.until(lambda: len(page.all("#page tbody tr")) == 1)
    page.shot("tenants")
    seen["found"] = [a.text for a in page.all("#page tbody a")]
    page.one("#page tbody a").click()
    seen["title"] = page.until(lambda: page.one("#page h2").text)
    seen["images"], seen["bold"] = len(page.all("img")), len(page.all("td b"))
    seen["disabled_at_first"] = not any(b.is_enabled() for b in page.all("#page .tools button"))
    page.one("#changes").click()
    seen["states"] = [page.becomes("state", "active")]
    for button, state in (("Suspend", "suspended"), ("Resume", "active")):
        page.press(button, agree=True)
        seen["states"].append(page.becomes("state", state))
    page.shot("tenant")

    page.until(lambda: Select(page.one("#page select")).select_by_visible_text(INPUT["to"]) is None)
    page.press("Move", agree=True)
    page.until(lambda: "#/moves/" in driver.current_url)
    seen["moved"] = page.becomes("phase", "moved")
    seen["copied"] = page.field("copied")
    page.shot("move")
    page.press("Complete", agree=True)
    seen["completed"] = page.becomes("outcome", "completed")
    page.go("Moves")
    page.until(lambda: page.all("#page tbody tr"))
    page.shot("moves")
    seen["hacked"] = driver.execute_script("return window.hacked !== undefined")
    seen["console"] = page.complaints()
    return seen


with tempfile.TemporaryDirectory() as profile:
    driver = browser(profile)
    try:
        print(json.dumps(use(driver)))
    finally:
        driver.quit()
