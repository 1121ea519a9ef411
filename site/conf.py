"Sphinx's settings for the web site; site/build.py prepares what it reads"
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='])
config.read(here.parent/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

project = title = html_title = cfg['title']
author, release = cfg['author'], cfg['version']
copyright = cfg['author']
extensions = ['myst_nb']
html_theme, html_static_path, html_css_files = 'furo', [str(here/'static')], ['site.css']
html_favicon = str(here/'static'/'icon.svg')
html_baseurl = f"https://{cfg['user']}.github.io/{cfg['lib_name']}/"
html_show_sourcelink = html_copy_source = html_show_sphinx = False
html_theme_options = dict(
    light_css_variables={'color-brand-primary': '#b0401f', 'color-brand-content': '#a63a1a', 'color-brand-visited': '#7d3f5f'},
    dark_css_variables={'color-brand-primary': '#ff9a75', 'color-brand-content': '#ff9a75', 'color-brand-visited': '#e0a0c0'})
pygments_style, pygments_dark_style = 'a11y-high-contrast-light', 'a11y-high-contrast-dark'

nb_execution_mode, nb_merge_streams, nb_ipywidgets_js = 'off', True, {} # what the notebooks have saved is shown
myst_enable_extensions, myst_heading_anchors = ['dollarmath', 'colon_fence', 'html_image'], 4
myst_heading_slug_func = 'conf.slug'
html_math_renderer = 'mathml' # browsers draw it themselves: no script, and nothing to load


def slug(heading):
    "A heading's anchor, as JupyterLab makes it"
    return heading.replace(' ', '-')

def math(display):
    def visit(self, node):
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode
    return visit, None

def setup(app):
    app.add_html_math_renderer('mathml', math('inline'), math('block'))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
